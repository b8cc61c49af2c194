"""A flow network with its student, and what they say of flows: verdicts, and the embeddings that they came from.

`FlowNetwork` has them in this process, `NetworkProcess` in one of its own; to a classifier they are the same.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Checkpoint
from tapline.models.encode import TokenBatch, encode
from tapline.models.flow import Flow
from tapline.models.verdict import Verdict, context_terms, flow_verdicts
from tapline.service.engines.engine import Engine, EngineError, Scores, Timing
from tapline.service.engines.thread import EngineThread
from tapline.service.inference.cascade import Cascade

BATCH_TIMEOUT_SECONDS = 600.0
"""Longest time that an engine may take for a batch where nobody waits for live verdicts."""


class Judged(msgspec.Struct, array_like=True):
    """What was said of n flows: of each its verdict, None where the network's numbers for it are not finite; the
    embeddings, float32 [n, 2 width]; and what that took."""

    verdicts: list[Verdict | None]
    embeddings: NDArray[np.float32]
    timing: Timing


class Network(ABC):
    """Judges flows, each batch within `timeout_seconds`; several threads may ask."""

    checkpoint: Checkpoint
    timeout_seconds: float

    @property
    @abstractmethod
    def provider(self) -> str:
        """What computes, as of `Engine`."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether `close` was called."""

    @abstractmethod
    def judge(
        self, flows: Sequence[Flow], ports: Sequence[bool], cascade: Sequence[bool], *, with_scores: bool = False
    ) -> Judged:
        """What is said of flows: `ports` says of each whether its ports are read, `cascade` whether the student may
        answer it, `with_scores` whether verdicts have all logits.

        Raises:
            EngineError: it failed.
            EngineStalledError: it does not answer in time, or `close` was called.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise where the next batch would fail at once.

        Raises:
            EngineStalledError: a batch is late and still goes on, or `close` was called.
        """

    @abstractmethod
    def close(self) -> None:
        """Take no more batches; who waits for one hears of it at once."""


class FlowNetwork(Network):
    """The engine of a checkpoint and its student, in this process. Where there is a student it answers the flows that
    it is sure of, and the engine the others: a `cascade`."""

    def __init__(self, engine: Engine, thread: EngineThread | None = None) -> None:
        """`thread`: where the engine computes, with a deadline for each batch."""
        self.engine = engine
        self.checkpoint = engine.checkpoint
        self.thread = thread or EngineThread(f"the engine of {engine.checkpoint.name}", BATCH_TIMEOUT_SECONDS)
        self.timeout_seconds = self.thread.timeout_seconds
        self._terms = context_terms(engine.checkpoint)
        student = engine.student
        self.cascade = Cascade(student, engine.checkpoint, self._terms) if student is not None else None

    @property
    def provider(self) -> str:
        """As of `Network`."""
        return self.engine.provider

    @property
    def is_closed(self) -> bool:
        """As of `Network`."""
        return self.thread.is_closed

    def check(self) -> None:
        """As of `Network`."""
        self.thread.check()

    def close(self) -> None:
        """As of `Network`."""
        self.thread.close()

    def judge(
        self, flows: Sequence[Flow], ports: Sequence[bool], cascade: Sequence[bool], *, with_scores: bool = False
    ) -> Judged:
        """As of `Network`."""
        scores, by_student, timing = self._scores_of(flows, ports, cascade)
        start = time.perf_counter()
        found = flow_verdicts(scores.logits, flows, self.checkpoint, self._terms, ports=ports, with_scores=with_scores)
        finite = np.asarray(np.isfinite(scores.embeddings).all(axis=1)).tolist()
        verdicts = [
            self._of(flow, verdict, by_student[row]) if is_finite and verdict is not None else None
            for row, (flow, verdict, is_finite) in enumerate(zip(flows, found, finite, strict=True))
        ]
        timing = replace(timing, compute_seconds=timing.compute_seconds + time.perf_counter() - start)
        return Judged(verdicts, scores.embeddings, timing)

    def _of(self, flow: Flow, verdict: Verdict, by_student: bool) -> Verdict:
        if self.checkpoint.student is not None:
            return msgspec.structs.replace(verdict, by_student=by_student, final=flow.complete)
        return verdict if flow.complete else msgspec.structs.replace(verdict, final=False)

    def flow_scores(self, flows: Sequence[Flow], *, ports: bool, cascade: bool) -> Scores:
        """What student and network say of flows, as for their verdicts; `ports`: whether ports are read, `cascade`:
        whether the student may answer.

        Raises:
            EngineError, EngineStalledError: as of `scores`.
        """
        return self._scores_of(flows, ports, cascade)[0]

    def _scores_of(
        self, flows: Sequence[Flow], ports: bool | Sequence[bool], cascade: bool | Sequence[bool]
    ) -> tuple[Scores, list[bool], Timing]:
        """What student and network say of flows, each of its own, of which it was the student, and what that cost."""
        if self.cascade is None or not np.any(cascade):
            scores, timing = self._computed(flows)
            return scores, [False] * len(flows), timing
        start = time.perf_counter()
        answered = self.cascade.answer(flows, ports, cascade)
        took = Timing(0.0, time.perf_counter() - start, 0, 0, 0, answered.flows)
        if answered.flows == len(flows):
            return answered.scores, [True] * len(flows), took
        rest = np.flatnonzero(~answered.sure)
        scores, timing = self._computed([flows[row] for row in rest.tolist()])
        return answered.with_computed(rest, scores), answered.sure.tolist(), timing.plus(took)

    def _computed(self, flows: Sequence[Flow]) -> tuple[Scores, Timing]:
        start = time.perf_counter()
        batch = encode(flows, self.checkpoint.features)
        encoded = time.perf_counter()
        scores, seconds = self._run(batch)
        timing = Timing(
            encoded - start,
            seconds,
            len(batch.ps_tokens) + len(batch.bytes_tokens),
            scores.padding_tokens,
            batch.lengths_out_of_vocabulary,
        )
        return scores, timing

    def scores(self, batch: TokenBatch) -> Scores:
        """What the engine computes for a batch, with a row for each of its flows.

        Raises:
            EngineError: the engine gave another number of scores than it should.
            EngineStalledError: it gave none in time.
        """
        return self._run(batch)[0]

    def _run(self, batch: TokenBatch) -> tuple[Scores, float]:
        """The scores, and the seconds that the engine took, without those in which it was at another batch."""

        def timed() -> tuple[Scores, float]:
            start = time.perf_counter()
            return self.engine.run(batch), time.perf_counter() - start

        scores, seconds = self.thread.call(timed)
        self._check_shapes(scores, len(batch))
        return scores, seconds

    def _check_shapes(self, scores: Scores, flows: int) -> None:
        network = self.checkpoint.network
        if len(scores.logits) != flows:
            raise EngineError(f"the engine scored {len(scores.logits)} flows of {flows}")
        expected = [(flows, network.n_class), (flows, 2 * network.d_model)]
        found = [scores.logits.shape, scores.embeddings.shape]
        if found != expected:
            raise EngineError(f"the engine gave arrays of shapes {found}, expected {expected}")
