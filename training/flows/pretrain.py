"""Masked-token pre-training of the encoders on unlabelled flows. Drawing and batching belong to `data.batches`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.encode import FIRST_TOKEN, MASK
from tapline.models.mm4flow import MaskedEncoder, Mm4flow
from tapline.training.data.batches import Batch, draw_weights, plain_batches, training_batches
from tapline.training.data.store import StoredFlows, StoredSamples
from tapline.training.flows.finetune import EVALUATION_BATCH_FLOWS, epoch_rng
from tapline.training.loop.config import Augmentation, TrainingConfig, TrainingError
from tapline.training.loop.new_networks import train_mode
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.trainer import Stage, Work

SELECTED = 0.2
"""Share of tokens to predict; of these 80 % read `[MASK]`, 10 % a random token, 10 % what they are."""
CAPTURE_POWER = 0.6
AUGMENTATION = Augmentation(no_content=0.0, mask_bytes=0.0, random_bytes=0.0, mask_lengths=0.0, jitter_lengths=0.05)
"""Flows are cut and turned as in training; tokens are hidden by `mask_tokens` alone."""
HELD_OUT = 50
"""One capture in so many, by the hash of its name, is kept from pre-training to measure the loss on."""
HELD_FLOWS = 2048

Modality = Literal["ps", "bytes"]
BOTH: tuple[Modality, ...] = ("bytes", "ps")


@dataclass(frozen=True)
class Masked:
    """`tokens` int64 [B, S] with some hidden; `selected` bool [B, S] says which are to be predicted."""

    tokens: Tensor
    selected: Tensor


@dataclass(frozen=True)
class MaskedBatch:
    """One modality of a batch: what was there, what is shown, and the token types, int64 [B, S] each."""

    encoder: MaskedEncoder
    whole: Tensor
    types: Tensor
    masked: Masked

    def loss(self, rows: NDArray[np.int64], group: Group) -> Tensor:
        """What these rows contribute to the mean cross-entropy of the hidden tokens; 0 where none was drawn."""
        index = torch.from_numpy(rows)
        tokens, types, selected, whole = (
            group.to_device(tensor[index])
            for tensor in (self.masked.tokens, self.types, self.masked.selected, self.whole)
        )
        hidden: Tensor = self.encoder(tokens, types)[selected]  # [N, D]
        predicted: Tensor = self.encoder.cls.predictions(hidden)  # [N, vocabulary]
        total = functional.cross_entropy(predicted, whole[selected], reduction="sum")
        return total / max(int(self.masked.selected.sum()), 1)


def mask_tokens(tokens: Tensor, vocabulary: int, share: float, generator: torch.Generator) -> Masked:
    """Hide a share of the real tokens as BERT does (Devlin et al., NAACL 2019); special tokens stay."""
    draw = torch.rand(tokens.shape, generator=generator)
    selected = (tokens >= FIRST_TOKEN) & (draw < share)
    how = torch.rand(tokens.shape, generator=generator)
    strange = torch.randint(FIRST_TOKEN, vocabulary, tokens.shape, generator=generator)
    hidden = torch.where(how < 0.8, MASK, torch.where(how < 0.9, strange, tokens))
    return Masked(torch.where(selected, hidden, tokens), selected)


def _masked(model: Mm4flow, batch: Batch, modality: Modality, generator: torch.Generator) -> MaskedBatch:
    if modality == "ps":
        encoder, tokens, types = model.ps_encoder, batch.ps_tokens, torch.zeros_like(batch.ps_tokens)
    else:
        encoder, tokens, types = model.bytes_encoder, batch.bytes_tokens, batch.bytes_types
    vocabulary = len(encoder.cls.predictions.bias)
    return MaskedBatch(encoder, tokens, types, mask_tokens(tokens, vocabulary, SELECTED, generator))


def _loss(parts: list[MaskedBatch], group: Group, rows: NDArray[np.int64]) -> Tensor:
    return torch.stack([part.loss(rows, group) for part in parts]).sum()


def pretrain_stage(
    model: Mm4flow,
    samples: StoredSamples,
    config: TrainingConfig,
    modalities: tuple[Modality, ...],
    group: Group = ALONE,
) -> Stage:
    """The stage of the training loop that pre-trains the encoders of `model` on samples, one of each kind; labels are
    not read. Both encoders together share their batches: each learns as it would by itself.

    Raises:
        TrainingError: there is no flow.
    """
    data = hold_out(samples)
    if not len(data.train):
        raise TrainingError("no flow to pre-train on: extract captures that hold payload")
    weights = draw_weights(data.train.corpora(), data.train.captures, 1.0, CAPTURE_POWER)

    def works(epoch: int) -> Iterator[Work]:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        for batch in training_batches(
            data.train.flows, weights, config.draws, config.batch_flows, config.features, AUGMENTATION,
            epoch_rng(config, epoch),
        ):  # fmt: skip
            parts = [_masked(model, batch, modality, generator) for modality in modalities]
            tokens = sum(int((part.whole > 0).sum()) for part in parts)
            computed = sum(part.whole.numel() for part in parts)
            yield Work(len(batch.rows), tokens, computed, partial(_loss, parts, group))

    def evaluate(mean: Mm4flow) -> dict[str, float]:
        return held_out_losses(mean, data.held.flows, config, modalities, group)

    name = "pretrain-" + "-".join(sorted(modalities))
    return Stage(name, works, partial(train_mode, dropout=False), evaluate)


def train_only(model: Mm4flow, modalities: tuple[Modality, ...]) -> Mm4flow:
    """The model, of which the encoders of `modalities` alone are trained."""
    model.requires_grad_(False)
    encoders: dict[Modality, nn.Module] = {"ps": model.ps_encoder, "bytes": model.bytes_encoder}
    for modality in modalities:
        encoders[modality].requires_grad_(True)
    return model


@torch.no_grad()
def held_out_losses(
    model: Mm4flow, flows: StoredFlows, config: TrainingConfig, modalities: tuple[Modality, ...], group: Group = ALONE
) -> dict[str, float]:
    """Mean masked-token loss by modality on flows that were kept aside, the same tokens hidden each time."""
    model.eval()
    generator = torch.Generator().manual_seed(config.seed)
    totals = dict.fromkeys(modalities, 0.0)
    hidden = dict.fromkeys(modalities, 0)
    for batch in plain_batches(flows, EVALUATION_BATCH_FLOWS, config.features):
        for modality in modalities:
            part = _masked(model, batch, modality, generator)
            count = int(part.masked.selected.sum())
            totals[modality] += float(part.loss(np.arange(len(batch.rows)), group)) * count
            hidden[modality] += count
    return {f"loss_{modality}": totals[modality] / hidden[modality] for modality in modalities if hidden[modality]}


def distinct(samples: StoredSamples, config: TrainingConfig) -> StoredSamples:
    """One sample, the first, of each kind that the model can tell apart."""
    kinds = samples.flows.kinds(config.features.payload_lengths, config.features.content_bytes)
    return samples.take(np.sort(np.unique(kinds, return_index=True)[1]))


@dataclass(frozen=True)
class Held:
    """Flows to train on and flows to measure on, of other captures."""

    train: StoredSamples
    held: StoredSamples


def hold_out(samples: StoredSamples) -> Held:
    """Keep one capture in `HELD_OUT` aside, at most `HELD_FLOWS` of its flows; none where that would leave nothing."""
    chosen = [name for name in samples.capture_names if crc32(name.encode()) % HELD_OUT == 0]
    aside = samples.in_captures(chosen)
    if aside.all():
        aside[:] = False
    return Held(samples.take(~aside), samples.take(np.flatnonzero(aside)[:HELD_FLOWS]))
