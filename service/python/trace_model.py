"""A trace model in Python: the traces of flows, and what the model says of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.flow import Flow, FlowError
from tapline.models.trace import Trace, make_traces
from tapline.models.trace_context import ContextColumns
from tapline.models.verdict import probabilities
from tapline.service.engines.engine import EngineError
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.flow_network import BATCH_TIMEOUT_SECONDS
from tapline.service.inference.trace_encoders import trace_encoders
from tapline.service.inference.trace_loading import misfit
from tapline.service.python.arguments import flows_of, traces_of
from tapline.service.python.flow_model import BATCH_FLOWS, FlowModel
from tapline.service.python.loaded_model import LoadedModel
from tapline.service.python.offline import Result
from tapline.service.traces.capture_traces import BATCH_TRACES
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import ScoreJob, TraceFlow, TraceVerdict, WindowKey, trace_flow


class TraceModel(LoadedModel[TracegramCheckpoint]):
    """A trace model that is loaded; `tapline.load` gives it. What `FlowModel` says of threads holds here too.

    Its input are traces, which `traces` makes of flows. There is no `embed`: the graph of a trace network gives none.
    """

    def __init__(self, engine: TraceEngine, directory: Path, threads: int, flow_model: FlowModel | None = None) -> None:
        """`flow_model`: whose embeddings it reads, where it reads those of one (`check_flow_model`)."""
        self.engine = engine
        super().__init__(engine.checkpoint, directory, threads)
        self._flow_model = flow_model
        self._scorer = TraceScorer(engine)
        (self._encoder,) = trace_encoders([engine], BATCH_TIMEOUT_SECONDS)

    def traces(self, flows: Iterable[Flow | Result]) -> list[Trace]:
        """The traces of flows that are all there, in any order: those of one subject in one window, as the checkpoint's
        `trace` settings define both. Flows without payload have no part.

        Raises:
            TypeError: it was given something else than flows.
            FlowError: no flow with payload has the packet heads that the model needs: `heads` of `tapline.read`.
        """
        kept = [flow for flow in flows_of("traces", flows) if flow.payload_lengths]
        traced = [flow for flow in kept if self._encoder.is_traced(flow)]
        if kept and not traced:
            raise FlowError(
                f"{self.name} needs packet heads, and none of the {len(kept)} flows with payload has them: read them "
                f"by tapline.read(..., heads={self._encoder.heads!r})"
            )
        return make_traces(traced, self.checkpoint.trace)

    def predict(self, traces: Iterable[Trace]) -> list[TraceVerdict | None]:
        """The verdict on each trace, in order, with its flows of most importance; None where the network's numbers for
        it are not finite. `source` is empty, as is the label of each flow: nobody has asked about the flows.

        Raises:
            EngineError: the engine failed, or a flow of a trace lacks the heads that the model needs.
            TypeError: it was given something else than traces.
        """
        return [verdict for jobs in self._jobs(traces_of("predict", traces)) for verdict in self._scorer.score(jobs)]

    def predict_proba(self, traces: Iterable[Trace]) -> NDArray[np.float64]:
        """Calibrated probabilities, float64 [traces, labels], columns as `labels`, as of `FlowModel.predict_proba`; NaN
        where the network's numbers for a trace are not finite. They are those of the single labels: what a model says
        of *suspicious* is in `predict`.

        Raises:
            EngineError: as of `predict`.
        """
        parts = [np.zeros((0, len(self.checkpoint.labels)))]
        for jobs in self._jobs(traces_of("predict_proba", traces)):
            logits = self._scorer.scores(jobs).logits
            finite = np.asarray(np.isfinite(logits).all(axis=1))
            part = np.full((len(jobs), len(self.checkpoint.labels)), np.nan)
            part[finite] = probabilities(logits[finite], self.checkpoint)
            parts.append(part)
        return np.concatenate(parts)

    def attention(self, traces: Iterable[Trace]) -> list[NDArray[np.float32]]:
        """The importance of each trace's flows, float32 [flows of the trace], which adds up to 1: what verdicts show as
        `share` (`TraceScores`). It is correlation, not proof of cause.

        Raises:
            EngineError: as of `predict`.
        """
        return [
            shares
            for jobs in self._jobs(traces_of("attention", traces))
            for shares in self._scorer.scores(jobs).importance
        ]

    def _jobs(self, traces: Iterator[Trace]) -> Iterator[list[ScoreJob]]:
        """The traces as the scorer takes them, so many at a time."""
        while batch := list(islice(traces, BATCH_TRACES)):
            kept = iter(self._kept([flow for trace in batch for flow in trace.flows]))
            yield [
                ScoreJob(
                    WindowKey("", trace.subject, trace.start_us),
                    trace.end_us,
                    list(islice(kept, len(trace.flows))),
                    trace.cut,
                    final=True,
                )
                for trace in batch
            ]

    def _kept(self, flows: Sequence[Flow]) -> Iterator[TraceFlow]:
        """What a trace keeps of each of its flows."""
        for start in range(0, len(flows), BATCH_FLOWS):
            batch = flows[start : start + BATCH_FLOWS]
            width = self.checkpoint.network.embedding_size
            computed = self._flow_model.embed(batch) if self._flow_model else np.zeros((len(batch), width), np.float32)
            for flow, found in zip(batch, self._encoder.encode(batch, computed, ContextColumns(batch)), strict=True):
                if not found or found[0].data is None:
                    raise EngineError(f"{self.name} cannot read the flow {flow.uid[:64]}: it takes those of `traces`")
                yield trace_flow(flow, None, found[0].data)


def check_flow_model(checkpoint: TracegramCheckpoint, flow_model: FlowModel | None) -> str | None:
    """Why a trace checkpoint cannot read flows beside this flow model, or None."""
    read = checkpoint.flow_checkpoint
    if flow_model is not None:
        return misfit(checkpoint, flow_model.checkpoint)
    if read is not None:
        return (
            f"the trace checkpoint {checkpoint.name} {checkpoint.version} reads the embeddings of {read.name} "
            f"{read.version}: load that and give it as flow_model"
        )
    return None
