"""Masked-token pre-training of one encoder on unlabelled flows. Drawing and batching belong to `training.batches`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.checkpoint import Mm4flowNetwork
from models.encode import FIRST_TOKEN, MASK
from models.mm4flow import MaskedEncoder, Mm4flow
from training.batches import Augmentation, draw_weights, training_batches
from training.finetune import EpochReport, Trainer, TrainingConfig, TrainingError, new_model, train_mode
from training.samples import Sample

SELECTED = 0.2
"""Share of tokens to predict; of these 80 % read `[MASK]`, 10 % a random token, 10 % what they are."""
CAPTURE_POWER = 0.6
AUGMENTATION = Augmentation(no_content=0.0, mask_bytes=0.0, random_bytes=0.0, mask_lengths=0.0, jitter_lengths=0.05)
"""Flows are cut and turned as in training; tokens are hidden by `mask_tokens` alone."""


@dataclass(frozen=True)
class Masked:
    """`tokens` int64 [B, S] with some hidden; `selected` bool [B, S] says which are to be predicted."""

    tokens: Tensor
    selected: Tensor


def mask_tokens(tokens: Tensor, vocabulary: int, share: float, generator: torch.Generator) -> Masked:
    """Hide a share of the real tokens as BERT does (Devlin et al., NAACL 2019); special tokens stay."""
    draw = torch.rand(tokens.shape, generator=generator)
    selected = (tokens >= FIRST_TOKEN) & (draw < share)
    how = torch.rand(tokens.shape, generator=generator)
    strange = torch.randint(FIRST_TOKEN, vocabulary, tokens.shape, generator=generator)
    hidden = torch.where(how < 0.8, MASK, torch.where(how < 0.9, strange, tokens))
    return Masked(torch.where(selected, hidden, tokens), selected)


def masked_token_loss(encoder: MaskedEncoder, tokens: Tensor, types: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the hidden tokens; 0 when none was drawn."""
    masked = mask_tokens(tokens, len(encoder.cls.predictions.bias), SELECTED, generator)
    hidden: Tensor = encoder(masked.tokens, types)[masked.selected]  # [N, D]
    if not len(hidden):
        return hidden.sum()
    predicted: Tensor = encoder.cls.predictions(hidden)  # [N, vocabulary]
    return functional.cross_entropy(predicted, tokens[masked.selected])


def pretrain(samples: Sequence[Sample], config: TrainingConfig, report: Callable[[EpochReport], None]) -> Mm4flow:
    """Pre-train both encoders on the flows of the samples, one of each kind; labels are not read.

    Raises:
        TrainingError: there is no flow, or the loss is not finite.
    """
    kept = distinct(samples, config)
    if not kept:
        raise TrainingError("no flow to pre-train on: extract captures that hold payload")
    weights = draw_weights([(sample.corpus, sample.capture) for sample in kept], 1.0, CAPTURE_POWER)
    network = Mm4flowNetwork(config.d_model, config.n_layer, config.n_head, config.dim_ff, 1)
    model = new_model(network, config.seed)
    rng = np.random.default_rng(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    trainer = Trainer(model, config, config.epochs * math.ceil(config.draws / config.batch_flows))
    train_mode(model, dropout=False)
    flows = [sample.flow for sample in kept]
    for epoch in range(config.epochs):
        started = time.monotonic()
        losses = []
        for batch in training_batches(
            flows, weights, config.draws, config.batch_flows, config.features, AUGMENTATION, rng
        ):
            content = masked_token_loss(model.bytes_encoder, batch.bytes_tokens, batch.bytes_types, generator)
            types = torch.zeros_like(batch.ps_tokens)
            losses.append(
                trainer.step(content + masked_token_loss(model.ps_encoder, batch.ps_tokens, types, generator))
            )
        report(EpochReport(epoch, float(np.mean(losses)), config.draws / (time.monotonic() - started)))
    return trainer.mean.eval()


def distinct(samples: Sequence[Sample], config: TrainingConfig) -> list[Sample]:
    """One sample of each kind that the model can tell apart."""
    kept: dict[tuple[tuple[int, ...], bytes, bytes], Sample] = {}
    lengths, content = config.features.payload_lengths, config.features.content_bytes
    for sample in samples:
        flow = sample.flow
        kept.setdefault(
            (tuple(flow.payload_lengths[:lengths]), flow.orig_bytes[:content], flow.resp_bytes[:content]), sample
        )
    return list(kept.values())
