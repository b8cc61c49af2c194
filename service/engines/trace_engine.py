"""The protocol that every trace engine fulfils: flows to features, and the features of a trace's flows to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import TracegramCheckpoint, TracegramNetwork
from tapline.models.flow import HEADS_TOKEN_BUDGET, Flow
from tapline.models.packet_tokens import PacketTokens
from tapline.models.trace_context import SIZES
from tapline.models.trace_features import trace_times
from tapline.service.engines.engine import EngineError
from tapline.service.engines.pieces import MAX_PIECE_FLOWS, MAX_PIECE_TOKENS, pieces_by_length
from tapline.service.engines.warm_flows import LONG_FLOW, SHORT_FLOW

MAX_PIECE_TRACES = 64


@dataclass(frozen=True)
class TraceInput:
    """What a trace engine reads of a trace of k >= 1 flows, in the order of `models.trace.flow_order`.

    `features` float32 [k, F], of the checkpoint's own encoder or of its flow checkpoint; `start_us`, `duration_us`
    int64 [k]; `context` uint8 [k, fields], those that its network reads (`models.trace_context`), None for none.
    """

    features: NDArray[np.float32]
    start_us: NDArray[np.int64]
    duration_us: NDArray[np.int64]
    context: NDArray[np.uint8] | None = None

    @property
    def categories(self) -> NDArray[np.uint8]:
        """The context, uint8 [k, 0] where there is none."""
        return self.context if self.context is not None else np.zeros((len(self.features), 0), np.uint8)


@dataclass(frozen=True)
class TraceScores:
    """Scores of t traces: logits float32 [t, classes], and the importance of each trace's flows, float32 [k].

    The importance of a flow is the attention that it gets, averaged over the queries; it sums to 1 over a trace. It is
    correlation, not proof of cause.
    """

    logits: NDArray[np.float32]
    importance: list[NDArray[np.float32]]


class TraceEngine(Protocol):
    """Runs one trace checkpoint. Neither a flow's feature nor a trace's scores depend on what is beside it.

    `provider` is what computes, as of `Engine`.
    """

    checkpoint: TracegramCheckpoint
    provider: str

    def embed(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        """Features of every flow by the checkpoint's own encoder, float32 [n, F], in order; [n, 0] where their context
        says all.

        Raises:
            EngineError: the checkpoint has no encoder: its features are embeddings of a flow checkpoint.
        """
        ...

    def score(self, traces: Sequence[TraceInput]) -> TraceScores:
        """Scores of every trace, in order.

        Raises:
            EngineError: a trace is empty, or its arrays do not fit the checkpoint or each other.
        """
        ...


def warm_up(engine: TraceEngine) -> None:
    """Run an engine once on few and on many tokens and flows, so that the first real ones wait for nothing."""
    checkpoint = engine.checkpoint
    if checkpoint.has_encoder:
        full = MAX_PIECE_TOKENS // HEADS_TOKEN_BUDGET
        for flow, count in ((SHORT_FLOW, 1), (SHORT_FLOW, MAX_PIECE_FLOWS), (LONG_FLOW, full)):
            engine.embed([flow] * count)
    network = checkpoint.network
    for count in (1, 16):
        features = np.zeros((count, network.embedding_size), np.float32)
        context = np.zeros((count, len(network.context)), np.uint8)
        zeros = np.zeros(count, np.int64)
        engine.score([TraceInput(features, zeros, zeros, context)])


@dataclass(frozen=True)
class TracePiece:
    """Traces of similar length as arrays: `rows` int64 [t], their places in the request; `features` float32 [t, k, F]
    `times` float32 [t, k, 2] and `context` uint8 [t, k, fields], zero where padded; `counts` int64 [t].
    """

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    times: NDArray[np.float32]
    context: NDArray[np.uint8]
    counts: NDArray[np.int64]


def packet_pieces(batch: PacketTokens) -> list[NDArray[np.int64]]:
    """Flows of similar length, as indices."""
    return pieces_by_length(batch.counts, MAX_PIECE_TOKENS, MAX_PIECE_FLOWS)


def trace_pieces(traces: Sequence[TraceInput], network: TracegramNetwork) -> list[TracePiece]:
    """Cut traces into pieces of similar length.

    Raises:
        EngineError: a trace is empty, or its arrays do not fit the network or each other.
    """
    width, fields = network.embedding_size, len(network.context)
    for trace in traces:
        k = len(trace.features)
        shapes = [trace.features.shape, trace.categories.shape, trace.start_us.shape, trace.duration_us.shape]
        if not k or shapes != [(k, width), (k, fields), (k,), (k,)]:
            raise EngineError(
                f"expected a trace of one flow or more with {width} numbers, {fields} fields of context, a start and a "
                f"duration each, got features {list(shapes[0])}, context {list(shapes[1])}, {len(trace.start_us)} "
                f"starts, {len(trace.duration_us)} durations"
            )
        _check_context(trace.categories, network)
    counts = np.fromiter((len(trace.features) for trace in traces), np.int64, len(traces))
    return [_piece(traces, rows, counts[rows]) for rows in pieces_by_length(counts, MAX_PIECE_TOKENS, MAX_PIECE_TRACES)]


def _piece(traces: Sequence[TraceInput], rows: NDArray[np.int64], counts: NDArray[np.int64]) -> TracePiece:
    longest, width = int(counts.max()), traces[int(rows[0])].features.shape[1]
    features = np.zeros((len(rows), longest, width), np.float32)
    times = np.zeros((len(rows), longest, 2), np.float32)
    context = np.zeros((len(rows), longest, traces[int(rows[0])].categories.shape[1]), np.uint8)
    for place, (row, count) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True)):
        trace = traces[row]
        features[place, :count] = trace.features
        times[place, :count] = trace_times(trace.start_us, trace.duration_us)
        context[place, :count] = trace.categories
    return TracePiece(rows, features, times, context, counts)


def _check_context(context: NDArray[np.uint8], network: TracegramNetwork) -> None:
    for field, largest in zip(network.context, context.max(axis=0).tolist(), strict=True):
        if largest >= SIZES[field]:
            raise EngineError(f"expected values of {field} below {SIZES[field]}, got {largest}")


def no_encoder(checkpoint: TracegramCheckpoint) -> EngineError:
    """What is raised where features are asked for that the checkpoint's encoder, if it has any, does not give."""
    flow = checkpoint.flow_checkpoint
    if flow is None:
        own = (
            "it reads the context of flows" if checkpoint.network.encoder == "context" else "its encoder is an MM4flow"
        )
        return EngineError(f"{checkpoint.name}: {own}, and no tokens of packet heads: give it flows")
    return EngineError(
        f"{checkpoint.name}: its flow features are the embeddings of {flow.name} {flow.version}: give those to `score`"
    )
