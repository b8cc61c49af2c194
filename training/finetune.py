"""Training of MM4flow's classifier: the loop, the learning rate, the running mean of the weights.

Data come as batches from `training.batches`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoint import Mm4flowNetwork
from models.encode import FIRST_TOKEN, MAX_LENGTH, Mm4flowFeatures
from models.flow import Flow
from models.mm4flow import Mm4flow, SelfAttention
from training.batches import Augmentation, plain_batches, training_batches

EVALUATION_BATCH_FLOWS = 64
MEAN_DECAY = 0.995
WARMUP_STEPS = 100
CLIP_NORM = 1.0
LENGTH_WAVES = (4.0, 8.0, 16.0, 64.0, 256.0, 1500.0)
LENGTH_OCTAVES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides a training run, beside the data.

    `draws` flows make an epoch. `class_power` and `capture_power`: see `training.batches.draw_weights`.
    `background_share`: how often background flows are drawn, in units of an average class.
    """

    d_model: int = 64
    n_head: int = 2
    n_layer: int = 2
    dim_ff: int = 256
    batch_flows: int = 32
    epochs: int = 20
    learning_rate: float = 2e-3
    seed: int = 0
    draws: int = 2048
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    class_power: float = 0.6
    capture_power: float = 0.5
    background_share: float = 3.0
    threads: int = 1
    features: Mm4flowFeatures = Mm4flowFeatures(payload_lengths=32, content_bytes=64)
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True)
class TrainingSet:
    """Flows with the index of their class, int64 [n], and how often to draw each, float64 [n] summing to 1."""

    flows: Sequence[Flow]
    truth: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch."""

    epoch: int
    loss: float
    flows_per_second: float


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


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


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


_Model = TypeVar("_Model", bound=nn.Module)


class Trainer(Generic[_Model]):
    """Steps of AdamW with clipping, and the running mean of the weights, which is what is evaluated and exported."""

    def __init__(self, model: _Model, config: TrainingConfig, steps: int) -> None:
        self.model = model
        self.mean = copy.deepcopy(model)
        self._optimizer = make_optimizer(model, config)
        self._peak = config.learning_rate
        self._steps = steps
        self._step = 0

    def step(self, loss: Tensor) -> float:
        """One step down the gradient of the loss; gives its value.

        Raises:
            TrainingError: the loss is not a finite number.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} in step {self._step}: lower the learning rate (-lr)")
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._step, self._steps, self._peak)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self._optimizer.step()
        self._step += 1
        decay = min(MEAN_DECAY, (self._step + 1) / (self._step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.parameters()), list(self.model.parameters()), 1 - decay)
        return value


def fit(
    model: Mm4flow,
    data: TrainingSet,
    config: TrainingConfig,
    report: Callable[[EpochReport], None] = lambda _: None,
) -> Mm4flow:
    """Train `model` on `data` and give the running mean of its weights.

    Raises:
        TrainingError: the loss is not finite.
    """
    rng = np.random.default_rng(config.seed)
    steps = config.epochs * math.ceil(config.draws / config.batch_flows)
    trainer = Trainer(model, config, steps)
    truth = torch.from_numpy(data.truth)
    train_mode(model)
    for epoch in range(config.epochs):
        started = time.monotonic()
        losses = []
        for batch in training_batches(
            data.flows, data.weights, config.draws, config.batch_flows, config.features, config.augmentation, rng
        ):
            logits = model(batch.ps_tokens, batch.bytes_tokens, batch.bytes_types).logits
            loss = functional.cross_entropy(logits, truth[batch.rows], label_smoothing=config.label_smoothing)
            losses.append(trainer.step(loss))
        elapsed = time.monotonic() - started
        report(EpochReport(epoch, float(np.mean(losses)), config.draws / elapsed))
    return trainer.mean.eval()


@torch.inference_mode()
def predict(model: Mm4flow, flows: Sequence[Flow], features: Mm4flowFeatures) -> NDArray[np.float32]:
    """Logits of every flow in order, float32 [n, classes]."""
    model.eval()
    logits = np.zeros((len(flows), len(model.get_parameter("classifier.0.bias"))), np.float32)
    for batch in plain_batches(flows, EVALUATION_BATCH_FLOWS, features):
        logits[batch.rows] = model(batch.ps_tokens, batch.bytes_tokens, batch.bytes_types).logits.numpy()
    return logits
