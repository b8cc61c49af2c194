"""Training of MM4flow's classifier in the two published stages: frozen encoders first, then everything.

Data come as batches from `training.data.batches`; steps, saving and resuming are `training.loop.trainer`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import FIRST_TOKEN, MAX_LENGTH, Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow, SelfAttention
from tapline.training.data.batches import Batch, plain_batches, training_batches
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.run_state import load_state
from tapline.training.loop.trainer import RunFiles, Stage, StepReport, Trainer, Work, run_stage

EVALUATION_BATCH_FLOWS = 64
LENGTH_WAVES = (4.0, 8.0, 16.0, 64.0, 256.0, 1500.0)
LENGTH_OCTAVES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
FROZEN, ALL = "finetune-frozen", "finetune"


@dataclass(frozen=True)
class TrainingSet:
    """Flows with the index of their class, int64 [n], and how often to draw each, float64 [n] summing to 1."""

    flows: Sequence[Flow]
    truth: NDArray[np.int64]
    weights: NDArray[np.float64]


def order_lengths(model: Mm4flow, seed: int) -> None:
    """Give the embeddings of payload lengths an order: add waves of the length and of its logarithm, mixed at random.

    A length that training never saw then starts near its neighbours instead of nowhere.
    """
    table = model.ps_encoder.bert.embeddings.word_embeddings.weight  # [vocabulary, D]
    lengths = torch.arange(1, MAX_LENGTH + 1, dtype=torch.float32)[:, None]
    phases = torch.cat(
        (
            lengths.log() * (torch.tensor(LENGTH_OCTAVES) * math.pi / 2),
            lengths * (2 * math.pi / torch.tensor(LENGTH_WAVES)),
        ),
        dim=1,
    )
    waves = torch.cat((phases.sin(), phases.cos()), dim=1)  # [1500, W]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for direction in (0, 1):
            mix = torch.randn(waves.shape[1], table.shape[1], generator=generator) * 0.05 * (2 / waves.shape[1]) ** 0.5
            table[FIRST_TOKEN + direction :: 2] += waves @ mix


def new_model(network: Mm4flowNetwork, seed: int, encoders: Mapping[str, Tensor] | None = None) -> Mm4flow:
    """A network to train: random, lengths in order, and pre-trained encoders where they are given.

    Raises:
        TrainingError: the encoders are of another size.
    """
    torch.manual_seed(seed)
    model = Mm4flow(network)
    order_lengths(model, seed)
    if encoders:
        try:
            _, unexpected = model.load_state_dict(encoders, strict=False)
        except RuntimeError as error:
            raise TrainingError(f"pre-trained encoders do not fit: {str(error).splitlines()[-1].strip()}") from None
        if unexpected:
            raise TrainingError(f"pre-trained encoders do not fit this network: unexpected {unexpected[0]}")
    return model


def train_mode(model: nn.Module, *, dropout: bool = True) -> None:
    """Dropout on, but not inside attention, where it would rule out the fused kernel and costs a fifth of the time."""
    model.train()
    for module in model.modules():
        if isinstance(module, SelfAttention) or (isinstance(module, nn.Dropout) and not dropout):
            module.eval()


def epoch_rng(config: TrainingConfig, epoch: int) -> np.random.Generator:
    """The random numbers of an epoch: they depend on nothing else, so that a run can be taken up anywhere."""
    return np.random.default_rng((config.seed, epoch))


def fit(
    model: Mm4flow,
    data: TrainingSet,
    config: TrainingConfig,
    report: Callable[[StepReport], None] = lambda _: None,
    files: RunFiles | None = None,
    group: Group = ALONE,
    evaluate: Callable[[Mm4flow], dict[str, float]] | None = None,
) -> Mm4flow:
    """Train `model` on `data` and give the running mean of its weights; `evaluate` measures it on the way.

    Raises:
        TrainingError: the loss is not finite, or the state cannot be saved or read.
    """
    saved = load_state(files.directory, files.fingerprint) if files else None
    if config.frozen_epochs and (saved is None or saved.stage == FROZEN):
        _freeze(model, frozen=True)
        model = _fit_stage(FROZEN, model, data, config, config.frozen_epochs, report, files, group, evaluate)
        _freeze(model, frozen=False)
    return _fit_stage(ALL, model, data, config, config.epochs, report, files, group, evaluate)


def _freeze(model: Mm4flow, *, frozen: bool) -> None:
    for encoder in (model.ps_encoder, model.bytes_encoder):
        encoder.requires_grad_(not frozen)


def _fit_stage(
    name: str,
    model: Mm4flow,
    data: TrainingSet,
    config: TrainingConfig,
    epochs: int,
    report: Callable[[StepReport], None],
    files: RunFiles | None,
    group: Group,
    evaluate: Callable[[Mm4flow], dict[str, float]] | None,
) -> Mm4flow:
    steps = epochs * math.ceil(config.draws / config.batch_flows)
    stage = finetune_stage(name, model, data, config, group, evaluate)
    return run_stage(Trainer(model, config, steps, group), stage, config, epochs, files, report, group)


def finetune_stage(
    name: str,
    model: Mm4flow,
    data: TrainingSet,
    config: TrainingConfig,
    group: Group = ALONE,
    evaluate: Callable[[Mm4flow], dict[str, float]] | None = None,
) -> Stage:
    """The stage of the training loop that teaches `model` the classes of flows."""
    truth = torch.from_numpy(data.truth)

    def works(epoch: int) -> Iterator[Work]:
        for batch in training_batches(
            data.flows, data.weights, config.draws, config.batch_flows, config.features, config.augmentation,
            epoch_rng(config, epoch),
        ):  # fmt: skip
            yield Work(len(batch.rows), batch.tokens, batch.computed, partial(loss, batch))

    def loss(batch: Batch, rows: NDArray[np.int64]) -> Tensor:
        part = batch.part(rows)
        logits = model(*map(group.to_device, (part.ps_tokens, part.bytes_tokens, part.bytes_types))).logits
        wanted = group.to_device(truth[part.rows])
        total = functional.cross_entropy(logits, wanted, label_smoothing=config.label_smoothing, reduction="sum")
        return total / len(batch.rows)

    return Stage(name, works, train_mode, evaluate)


@torch.inference_mode()
def predict(model: Mm4flow, flows: Sequence[Flow], features: Mm4flowFeatures) -> NDArray[np.float32]:
    """Logits of every flow in order, float32 [n, classes]."""
    model.eval()
    bias = model.get_parameter("classifier.0.bias")
    logits = np.zeros((len(flows), len(bias)), np.float32)
    for batch in plain_batches(flows, EVALUATION_BATCH_FLOWS, features):
        tokens = (batch.ps_tokens, batch.bytes_tokens, batch.bytes_types)
        logits[batch.rows] = model(*(part.to(bias.device) for part in tokens)).logits.float().cpu().numpy()
    return logits
