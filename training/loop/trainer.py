"""The training loop: optimiser steps over batches, running mean of the weights, saving and resuming, logs.

What a batch is and what its loss is belong to the stages; the processes that share the work to `parallel`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.dropout import Draws, by_flow
from tapline.training.loop.prefetch import Prefetched
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.run_log import RunLog
from tapline.training.loop.run_state import Progress, load_state, save_state

WARMUP_STEPS = 100
MEAN_DECAY = 0.995
LOG_STEPS = 10


@dataclass(frozen=True)
class Work:
    """One batch. `loss(rows)` is what these rows contribute to its mean loss: over all rows it adds up to the mean.

    `tokens` are real ones; `computed` are those that the network computes, padding with them.
    """

    flows: int
    tokens: int
    computed: int
    loss: Callable[[NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class StepReport:
    """What is known after a step; rates, of real tokens, and the share of padding are since the start or resumption."""

    step: int
    steps: int
    epoch: int
    loss: float
    flows_per_second: float
    tokens_per_second: float
    padding_share: float


Report = Callable[[StepReport], None]


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps its state and logs; `fingerprint` stands for its settings and data."""

    directory: Path
    fingerprint: str


@dataclass(frozen=True)
class Stage:
    """What one pass of the loop does: its name, `works(epoch)` giving the batches of an epoch, the same at every call.

    `mode` puts the model into training mode; `evaluate` measures the running mean of the weights, which it is given.
    `dropout_by_flow`: what is dropped depends on a flow's place in the batch alone (`dropout`), so that the
    batch may be computed in parts; not for stages whose dropout does not act on the flows of the batch.
    `works` runs in a thread of its own, ahead of the steps: it must not depend on the weights, nor on torch's default
    random numbers.
    """

    name: str
    works: Callable[[int], Iterator[Work]]
    mode: Callable[[nn.Module], None]
    evaluate: Callable[[Any], dict[str, float]] | None = None
    dropout_by_flow: bool = True


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over `WARMUP_STEPS`, multiplied by half a cosine down to 0 at `steps`."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what is to be trained; matrices decay, vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


_Model = TypeVar("_Model", bound=nn.Module)


class Trainer(Generic[_Model]):
    """Steps of AdamW with clipping, and the running mean of the weights, which is what is evaluated and exported."""

    def __init__(self, model: _Model, config: TrainingConfig, steps: int, group: Group = ALONE) -> None:
        self.model = model.to(group.device)
        self.mean = copy.deepcopy(model)
        self.taken = 0
        self.gradient_norm = 0.0
        self.draws: Draws | None = None
        self._group = group
        self._optimizer = make_optimizer(model, config)
        self._peak = config.learning_rate
        self._clip_norm = config.clip_norm
        self._steps = steps

    def step(self, loss: Tensor) -> float:
        """One step down the gradient of the loss; gives its value.

        Raises:
            TrainingError: the loss is not a finite number; the weights are as they were.
        """
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return self._finish(float(loss.detach()))

    def work(self, work: Work, parts: int = 1) -> float:
        """One step down the mean loss of a batch, computed in parts and by all processes of the group.

        Raises:
            TrainingError: as `step`.
        """
        self._optimizer.zero_grad()
        mine = np.arange(self._group.rank, work.flows, self._group.size)
        value = 0.0
        for part in range(parts):
            if len(rows := mine[part::parts]):
                if self.draws:
                    self.draws.begin(self.taken, work.flows, rows)
                with torch.autocast(
                    self._group.device.type, self._group.autocast, enabled=self._group.autocast is not None
                ):
                    loss = work.loss(rows)
                loss.backward()  # type: ignore[no-untyped-call]
                value += float(loss.detach())
        self._group.add_gradients(self.model)
        return self._finish(self._group.add(value))

    def _finish(self, value: float) -> float:
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} in step {self.taken}: lower the learning rate (-lr)")
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm))
        self._optimizer.step()
        self.taken += 1
        decay = min(MEAN_DECAY, (self.taken + 1) / (self.taken + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.parameters()), list(self.model.parameters()), 1 - decay)
        return value

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.taken, self._steps, self._peak)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, progress: Progress) -> None:
        """Take up a saved state."""
        self.model.load_state_dict(progress.tensors["model"])
        self.mean.load_state_dict(progress.tensors["mean"])
        self._optimizer.load_state_dict(progress.tensors["optimizer"])
        self.taken = progress.step


def run_stage(
    trainer: Trainer[_Model],
    stage: Stage,
    config: TrainingConfig,
    epochs: int,
    files: RunFiles | None = None,
    report: Report = lambda _: None,
    group: Group = ALONE,
) -> _Model:
    """Train for `epochs` of `config.draws` flows and give the running mean of the weights.

    With `files` the state is saved `config.saves` times an epoch, and a saved one is taken up; the losses are
    then those of a run that was never broken.

    Raises:
        TrainingError: the loss is not finite, or the state cannot be saved or read.
    """
    per_epoch = math.ceil(config.draws / config.batch_flows)
    steps = epochs * per_epoch
    saved = load_state(files.directory, files.fingerprint) if files else None
    if saved is not None and saved.stage == stage.name:
        trainer.restore(saved)
    log = RunLog(files.directory, stage.name, trainer.taken) if files and group.rank == 0 else None
    if log and not trainer.taken:
        log.write("start", config=config)
    watch = _Watch(stage, config, steps, log, files, group, report)
    trainer.draws = by_flow(trainer.model, config.seed, group.device) if stage.dropout_by_flow else None
    stage.mode(trainer.model)
    losses = list(saved.tensors["losses"]) if saved and trainer.taken % per_epoch else []
    try:
        with Prefetched(_works(stage, trainer.taken, per_epoch, epochs)) as works:
            for work in works:
                epoch = trainer.taken // per_epoch
                torch.manual_seed(config.seed * 1_000_003 + trainer.taken)  # a step's draws need no state
                losses.append(trainer.work(work, config.accumulate))
                watch.after_step(trainer, epoch, per_epoch, work, losses, works.waited_seconds)
                if not trainer.taken % per_epoch:
                    losses = []
    finally:
        if log:
            log.close()
    return trainer.mean.eval()


def train_stage(
    model: _Model,
    stage: Stage,
    config: TrainingConfig,
    files: RunFiles | None = None,
    report: Report = lambda _: None,
    group: Group = ALONE,
    epochs: int | None = None,
) -> _Model:
    """`run_stage` with a new trainer of `model`, for `epochs`, without them for those of the settings."""
    epochs = config.epochs if epochs is None else epochs
    trainer = Trainer(model, config, epochs * math.ceil(config.draws / config.batch_flows), group)
    return run_stage(trainer, stage, config, epochs, files, report, group)


def _works(stage: Stage, taken: int, per_epoch: int, epochs: int) -> Iterator[Work]:
    """The batches after so many steps, to the last."""
    for epoch in range(taken // per_epoch, epochs):
        yield from islice(stage.works(epoch), max(0, taken - epoch * per_epoch), None)


@dataclass
class _Watch:
    """What happens beside the steps: reports, log lines, evaluations, saved states."""

    stage: Stage
    config: TrainingConfig
    steps: int
    log: RunLog | None
    files: RunFiles | None
    group: Group
    report: Report
    flows: int = 0
    tokens: int = 0
    computed: int = 0

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    def after_step(
        self, trainer: Trainer[Any], epoch: int, per_epoch: int, work: Work, losses: list[float], waited_seconds: float
    ) -> None:
        """Report the step; log, evaluate and save where it is time to."""
        self.flows += work.flows
        self.tokens += work.tokens
        self.computed += work.computed
        elapsed = max(time.monotonic() - self._started, 1e-9)
        step, inside = trainer.taken, trainer.taken - epoch * per_epoch
        rates = {"flows_per_second": self.flows / elapsed, "tokens_per_second": self.tokens / elapsed}
        self.report(
            StepReport(step, self.steps, epoch, losses[-1], **rates, padding_share=1 - self.tokens / self.computed)
        )
        if self.log and (step % LOG_STEPS == 0 or inside == per_epoch):
            self.log.write(
                "step", step=step, epoch=epoch, loss=losses[-1], learning_rate=trainer.rate,
                gradient_norm=trainer.gradient_norm, padding_share=1 - work.tokens / work.computed,
                input_wait_share=waited_seconds / elapsed, **rates,
            )  # fmt: skip
        if self.log and self.stage.evaluate and _is_due(inside, per_epoch, self.config.evaluations):
            figures = self.stage.evaluate(trainer.mean)
            if figures:
                self.log.write("evaluation", step=step, epoch=epoch, **figures)
        if self.log and inside == per_epoch:
            self.log.write("epoch", step=step, epoch=epoch, loss=float(np.mean(losses)))
        if self.files and self.log and _is_due(inside, per_epoch, self.config.saves):
            state = trainer.state() | {"losses": losses if inside < per_epoch else []}
            save_state(self.files.directory, self.files.fingerprint, Progress(self.stage.name, step, state))


def _is_due(step: int, steps: int, times: int) -> bool:
    """Whether one of `times` evenly spread moments of an epoch is after this step; the last is at its end."""
    return step * times // steps > (step - 1) * times // steps
