"""From windows to verdicts: stored embeddings to the engine, its logits to a verdict, importance to the top flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.trace import subject_kind_of
from tapline.models.verdict import Verdict, called_unknown, suspicions, verdicts
from tapline.service.community_id import community_id
from tapline.service.engines.engine import EngineError
from tapline.service.engines.thread import EngineStalledError, EngineThread
from tapline.service.engines.trace_engine import TraceEngine, TraceInput, TraceScores, warm_up
from tapline.service.inference.flow_features import split
from tapline.service.inference.flow_network import BATCH_TIMEOUT_SECONDS
from tapline.service.log_lines import log
from tapline.service.traces.trace_verdict import TOP_FLOWS, ScoreJob, TopFlow, TraceFlow, TraceVerdict

SHARE_DIGITS = 6


Watch = Callable[[Sequence[ScoreJob], NDArray[np.float32]], None]
"""Is told of windows that were scored, and of their logits float32 [n, classes]."""


def _nobody(jobs: Sequence[ScoreJob], logits: NDArray[np.float32]) -> None:
    """Watches nothing."""


class TraceScorer:
    """Scores windows with a trace checkpoint. Several threads may ask; the engine is asked by one at a time."""

    def __init__(self, engine: TraceEngine, timeout_seconds: float = BATCH_TIMEOUT_SECONDS) -> None:
        """`timeout_seconds`: longest time that the engine may take for a batch."""
        self.checkpoint = engine.checkpoint
        self.thread = EngineThread(f"the trace engine of {engine.checkpoint.name}", timeout_seconds)
        self.engine = engine

    def warm_up(self) -> None:
        """Run the engine on what fills it, so that the first real traces wait for nothing."""
        self.thread.call(lambda: warm_up(self.engine))

    def score_each(self, jobs: Sequence[ScoreJob], watch: Watch = _nobody) -> list[TraceVerdict | None]:
        """As `score`, but whatever the engine raises costs one trace its verdict, and none of the others theirs.

        An engine that does not answer costs all of them theirs: it would not answer any sooner for one.
        """
        try:
            return self.score(jobs, watch)
        except EngineStalledError as error:
            log.error("trace engine stalled", model=self.checkpoint.name, reason=str(error), traces=len(jobs))
            return [None] * len(jobs)
        except Exception as error:
            if len(jobs) > 1:
                middle = len(jobs) // 2
                return self.score_each(jobs[:middle], watch) + self.score_each(jobs[middle:], watch)
            name = self.checkpoint.name
            log.error("trace engine failed", model=name, error=type(error).__name__, flows=len(jobs[0].flows))
            return [None]

    def score(self, jobs: Sequence[ScoreJob], watch: Watch = _nobody) -> list[TraceVerdict | None]:
        """One verdict for each window, in order; None where the network's numbers for it are not finite.

        `watch` is told of the logits, in this thread.

        Raises:
            EngineError: the engine gave another number of scores than it got traces, or shares of other flows.
            EngineStalledError: it gave none in time.
        """
        if not jobs:
            return []
        scores = self.scores(jobs)
        watch(jobs, scores.logits)
        found = verdicts(scores.logits, self.checkpoint)
        suspected = self._suspicions(scores.logits)
        return [
            None
            if verdict is None or not np.isfinite(shares).all()
            else self._verdict(job, verdict, suspicion, _top_flows(job.flows, shares))
            for job, verdict, suspicion, shares in zip(jobs, found, suspected, scores.importance, strict=True)
        ]

    def scores(self, jobs: Sequence[ScoreJob]) -> TraceScores:
        """What the engine computes for one window or more, in order.

        Raises:
            EngineError, EngineStalledError: as of `score`.
        """
        inputs = [_input(job.flows, self.checkpoint) for job in jobs]
        scores = self.thread.call(lambda: self.engine.score(inputs))
        expected = (len(jobs), self.checkpoint.network.n_class)
        counts = [(len(job.flows),) for job in jobs]
        if scores.logits.shape != expected or [shares.shape for shares in scores.importance] != counts:
            raise EngineError(f"the trace engine's scores do not fit the {len(jobs)} traces that it got")
        return scores

    def _suspicions(self, logits: NDArray[np.float32]) -> list[float | None]:
        """The suspicion of each trace, None where the model does not tell it, or its logits are not finite."""
        if self.checkpoint.suspicion is None:
            return [None] * len(logits)
        finite = np.asarray(np.isfinite(logits).all(axis=1)).tolist()
        rest = iter(suspicions(logits[finite], self.checkpoint).tolist())
        return [next(rest) if is_finite else None for is_finite in finite]

    def _verdict(
        self, job: ScoreJob, verdict: Verdict, suspicion: float | None, top_flows: list[TopFlow]
    ) -> TraceVerdict:
        rule = self.checkpoint.suspicion
        suspicious = None if rule is None or suspicion is None else suspicion >= rule.threshold
        if suspicious is False:  # no label of a malicious kind for what is of none
            verdict = called_unknown(verdict)
        return TraceVerdict(
            source=job.key.source,
            subject_kind=subject_kind_of(job.key.subject, self.checkpoint.trace.subject),
            subject=job.key.subject,
            start_us=job.key.start_us,
            end_us=job.end_us,
            flows=len(job.flows),
            cut=job.cut,
            verdict=msgspec.structs.replace(verdict, final=job.final),
            top_flows=top_flows,
            suspicion=suspicion,
            suspicious=suspicious,
        )


def _input(flows: Sequence[TraceFlow], checkpoint: TracegramCheckpoint) -> TraceInput:
    embeddings, context = split([flow.features for flow in flows], checkpoint)
    return TraceInput(
        embeddings,
        np.array([flow.start_us for flow in flows], np.int64),
        np.array([flow.duration_us for flow in flows], np.int64),
        context,
    )


def _top_flows(flows: Sequence[TraceFlow], shares: NDArray[np.float32]) -> list[TopFlow]:
    """The flows of most importance first; where it is equal, the earlier one."""
    order = np.argsort(-shares, kind="stable")[:TOP_FLOWS].tolist()
    return [_top_flow(flows[index], round(float(shares[index]), SHARE_DIGITS)) for index in order]


def _top_flow(flow: TraceFlow, share: float) -> TopFlow:
    return TopFlow(
        flow.uid, community_id(flow), flow.start_us, flow.duration_us, flow.proto, flow.orig_h, flow.orig_p,
        flow.resp_h, flow.resp_p, flow.ip_bytes, flow.label, share, flow.server_name,
    )  # fmt: skip
