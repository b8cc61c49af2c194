"""A trace model in Python: the traces of flows, and what the model says of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.flow import Flow
from tapline.models.trace import Trace, make_traces
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.traces.trace_verdict import TraceVerdict


class TraceModel:
    """A trace model that is loaded; `tapline.load` gives it. What `FlowModel` says of threads holds here too."""

    def __init__(self, engine: TraceEngine, directory: Path, threads: int) -> None:
        self.engine = engine
        self.directory = directory
        self.threads = threads

    @property
    def checkpoint(self) -> TracegramCheckpoint:
        """The manifest: network, labels, how flows become traces, what it was measured on."""
        return self.engine.checkpoint

    @property
    def name(self) -> str:
        """The model's name."""
        return self.checkpoint.name

    @property
    def version(self) -> str:
        """The model's version."""
        return self.checkpoint.version

    @property
    def labels(self) -> list[str]:
        """What it knows, in the order of the columns of `predict_proba`."""
        return list(self.checkpoint.labels)

    def traces(self, flows: Iterable[Flow]) -> list[Trace]:
        """The traces of flows that are all there, in any order: those of one subject in one window, as the checkpoint's
        `trace` settings define both. Flows need the heads that `tapline.read` keeps; those without payload have no
        part.
        """
        return make_traces(flows, self.checkpoint.trace)

    def predict(self, traces: Iterable[Trace]) -> list[TraceVerdict | None]:
        """The verdict on each trace, in order, with its flows of most importance; None where the network's numbers for
        it are not finite.

        Raises:
            EngineError: the engine failed.
        """
        raise NotImplementedError

    def predict_proba(self, traces: Iterable[Trace]) -> NDArray[np.float32]:
        """Calibrated probabilities, float32 [traces, labels], as those of `FlowModel.predict_proba`.

        Raises:
            EngineError: the engine failed.
        """
        raise NotImplementedError

    def attention(self, traces: Iterable[Trace]) -> list[NDArray[np.float32]]:
        """The importance of each trace's flows, float32 [flows of the trace], which adds up to 1: the attention that a
        flow gets, averaged over the queries. It is correlation, not proof of cause.

        Raises:
            EngineError: the engine failed.
        """
        raise NotImplementedError
