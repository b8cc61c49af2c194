"""The encoders of the trace models that serve: each encodes a flow once, however many models read what it gives.

An encoder that fails costs its models a flow, one that hangs all flows until it answers; no flow loses its own verdict.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import ENCODER_ONNX, ENCODER_ONNX_INT8, TracegramCheckpoint
from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import Flow, HeadsKind
from tapline.models.trace import is_instance
from tapline.models.trace_context import ContextColumns
from tapline.service.engines.engine import EngineError
from tapline.service.engines.thread import EngineStalledError, EngineThread
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.flow_features import FlowFeatures, pack
from tapline.service.log_lines import log


class TraceEncoder:
    """One encoder, the trace checkpoints that read what it gives, and the thread that it computes in."""

    def __init__(self, engines: Sequence[TraceEngine], timeout_seconds: float) -> None:
        """`engines`: whose encoders are the same; the first computes for all, within `timeout_seconds` for a batch."""
        self.checkpoints = [engine.checkpoint for engine in engines]
        checkpoint = self.checkpoints[0]
        names = " and ".join(each.name for each in self.checkpoints)
        self.thread = EngineThread(f"the flow encoder of {names}", timeout_seconds)
        self.reads: Mm4flowFeatures | None = checkpoint.mm4flow.features if checkpoint.mm4flow is not None else None
        self.reads_heads = checkpoint.network.encoder == "tracegram"
        self.heads: HeadsKind = "full" if self.reads_heads and checkpoint.features.payload else "header"
        self._contexts = {tuple(each.network.context) for each in self.checkpoints}
        self.reads_context = any(self._contexts)
        self._engine = engines[0] if checkpoint.has_encoder else None
        self._embeds = checkpoint.network.embedding_size > 0

    def is_traced(self, flow: Flow) -> bool:
        """Whether the encoder has what it needs of a flow."""
        return is_instance(flow) and self.heads in ("header", flow.heads_kind)

    def encode(
        self, flows: Sequence[Flow], computed: NDArray[np.float32], context: ContextColumns
    ) -> list[list[FlowFeatures]]:
        """What each flow's traces read of it, one for each checkpoint; none of a flow that the encoder cannot read.

        `computed` are the flow network's embeddings, float32 [n, width]; `context` is that of the flows.
        """
        rows = [row for row, flow in enumerate(flows) if self.is_traced(flow)]
        found: list[list[FlowFeatures]] = [[] for _ in flows]
        if not rows:
            return found
        embeddings = self._embed_each([flows[row] for row in rows]) if self._engine is not None else computed[rows]
        if not self._embeds:
            embeddings = np.zeros((len(rows), 0), np.float32)
        packed = {fields: pack(embeddings, context.table(fields)[rows]) for fields in self._contexts}
        for place, row in enumerate(rows):
            found[row] = [FlowFeatures(each, packed[tuple(each.network.context)][place]) for each in self.checkpoints]
        return found

    def _embed_each(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        """The embedding of each flow, float32 [n, width]; NaN where the encoder failed on it."""
        failed = np.full((len(flows), self.checkpoints[0].network.feature_size), np.nan, np.float32)
        try:
            return self._embed(flows)
        except EngineStalledError as error:
            log.error("trace encoder stalled", reason=str(error), flows=len(flows))
            return failed
        except Exception as error:
            if len(flows) > 1:  # halve until the bad one stands alone
                middle = len(flows) // 2
                return np.concatenate((self._embed_each(flows[:middle]), self._embed_each(flows[middle:])))
            log.error("trace encoder failed", error=type(error).__name__, uid=flows[0].uid)
            return failed

    def _embed(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        engine = self._engine
        assert engine is not None
        embeddings = self.thread.call(lambda: engine.embed(flows))
        expected = (len(flows), engine.checkpoint.network.feature_size)
        if embeddings.shape != expected:
            raise EngineError(f"the trace engine gave features of shape {embeddings.shape}, expected {expected}")
        return embeddings


def trace_encoders(engines: Iterable[TraceEngine], timeout_seconds: float) -> list[TraceEncoder]:
    """The distinct encoders of trace engines."""
    groups: dict[Hashable, list[TraceEngine]] = {}
    for engine in engines:
        groups.setdefault(_identity(engine.checkpoint), []).append(engine)
    return [TraceEncoder(group, timeout_seconds) for group in groups.values()]


def _identity(checkpoint: TracegramCheckpoint) -> Hashable:
    """What is the same of two checkpoints whose encoders give the same: the flow checkpoint, or the files that hold the
    encoder, and what it is given."""
    if checkpoint.network.encoder == "context":
        return checkpoint.network.encoder
    if checkpoint.flow_checkpoint is not None:
        return checkpoint.flow_checkpoint.weights_sha256
    files = [checkpoint.files.get(name) for name in (ENCODER_ONNX, ENCODER_ONNX_INT8)]
    if files[0] is None:
        return checkpoint.name, checkpoint.version
    own = checkpoint.mm4flow.features if checkpoint.mm4flow is not None else None
    return tuple(file.sha256 if file is not None else "" for file in files), checkpoint.features, own
