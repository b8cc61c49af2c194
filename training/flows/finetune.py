"""Training of MM4flow's classifier in the two published stages: frozen encoders first, then everything.

Data come as batches from `training.data.batches`; steps, saving and resuming are `training.loop.trainer`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.training.data.batches import Batch, TrainingSet, plain_batches, training_batches
from tapline.training.flows.context_counts import allowed_classes
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.new_networks import train_mode
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.run_state import load_state
from tapline.training.loop.trainer import Report, RunFiles, Stage, Work, train_stage

EVALUATION_BATCH_FLOWS = 64
FROZEN, ALL = "finetune-frozen", "finetune"


def epoch_rng(config: TrainingConfig, epoch: int) -> np.random.Generator:
    """The random numbers of an epoch: they depend on nothing else, so that a run can be taken up anywhere."""
    return np.random.default_rng((config.seed, epoch))


def fit(
    model: Mm4flow,
    data: TrainingSet,
    config: TrainingConfig,
    report: Report = lambda _: None,
    files: RunFiles | None = None,
    group: Group = ALONE,
    evaluate: Callable[[Mm4flow], dict[str, float]] | None = None,
) -> Mm4flow:
    """Train `model` on `data` and give the running mean of its weights; `evaluate` measures it on the way.

    Raises:
        TrainingError: the loss is not finite, or the state cannot be saved or read.
    """
    saved = load_state(files.directory, files.fingerprint) if files else None

    def learn(model: Mm4flow, name: str, epochs: int) -> Mm4flow:
        stage = finetune_stage(name, model, data, config, group, evaluate)
        return train_stage(model, stage, config, files, report, group, epochs)

    if config.frozen_epochs and (saved is None or saved.stage == FROZEN):
        _freeze(model, frozen=True)
        model = learn(model, FROZEN, config.frozen_epochs)
        _freeze(model, frozen=False)
    return learn(model, ALL, config.epochs)


def _freeze(model: Mm4flow, *, frozen: bool) -> None:
    for encoder in (model.ps_encoder, model.bytes_encoder):
        encoder.requires_grad_(not frozen)


def finetune_stage(
    name: str,
    model: Mm4flow,
    data: TrainingSet,
    config: TrainingConfig,
    group: Group = ALONE,
    evaluate: Callable[[Mm4flow], dict[str, float]] | None = None,
) -> Stage:
    """The stage of the training loop that teaches `model` the classes of flows, each among those of its transport."""
    truth = torch.from_numpy(data.truth)
    allowed, transport = map(torch.from_numpy, allowed_classes(data, len(model.get_parameter("classifier.0.bias"))))

    def works(epoch: int) -> Iterator[Work]:
        for batch in training_batches(
            data.flows, data.weights, config.draws, config.batch_flows, config.features, config.augmentation,
            epoch_rng(config, epoch),
        ):  # fmt: skip
            yield Work(len(batch.rows), batch.tokens, batch.computed, partial(loss, batch))

    def loss(batch: Batch, rows: NDArray[np.int64]) -> Tensor:
        part = batch.part(rows)
        logits = model(*map(group.to_device, (part.ps_tokens, part.bytes_tokens, part.bytes_types))).logits
        wanted, among = group.to_device(truth[part.rows]), group.to_device(allowed[transport[part.rows]])
        return barred_cross_entropy(logits, wanted, among, config.label_smoothing).sum() / len(batch.rows)

    return Stage(name, works, train_mode, evaluate)


def barred_cross_entropy(logits: Tensor, truth: Tensor, allowed: Tensor, smoothing: float) -> Tensor:
    """The cross-entropy of each flow, [B], of a softmax over the classes that it may have, bool [B, classes]: of logits
    [B, classes] and classes int64 [B]. The share `smoothing` of a label is spread over these classes alone."""
    log_shares = functional.log_softmax(logits.masked_fill(~allowed, -torch.inf), dim=1)
    right = -log_shares.gather(1, truth[:, None])[:, 0]
    mean = -log_shares.masked_fill(~allowed, 0.0).sum(1) / allowed.sum(1)
    return (1 - smoothing) * right + smoothing * mean


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
