"""The ONNX Runtime engine for traces on CPU: the default, needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import ENCODER_ONNX, ENCODER_ONNX_INT8, TRACE_ONNX, read_trace_checkpoint
from models.packets import PacketTokens, pad_packets
from service.engines.base import Precision
from service.engines.onnx_session import open_session
from service.engines.traces import TraceInput, TraceScores, flow_pieces, no_encoder, trace_pieces


class OnnxTraceEngine:
    """Runs `encoder.onnx` and `trace.onnx` of a checkpoint; threads share the sessions.

    With int8 the encoder is `encoder.int8.onnx`. Aggregation and head are small and stay in float32.
    """

    def __init__(self, directory: Path, threads: int = 0, precision: Precision = "float32") -> None:
        self.checkpoint = read_trace_checkpoint(directory)
        self._encoder = None
        if self.checkpoint.network.encoder == "tracegram":
            encoder = ENCODER_ONNX_INT8 if precision == "int8" else ENCODER_ONNX
            read_trace_checkpoint(directory, needs=(encoder,))
            self._encoder = open_session(directory / encoder, threads)
        self._trace = open_session(directory / TRACE_ONNX, threads)

    def embed(self, batch: PacketTokens) -> NDArray[np.float32]:
        """Features of every flow, [n, F], in the order of the batch."""
        if self._encoder is None:
            raise no_encoder(self.checkpoint)
        features = np.empty((len(batch), self.checkpoint.network.feature_size), np.float32)
        for rows in flow_pieces(batch):
            (features[rows],) = self._encoder.run(["features"], {"tokens": pad_packets(batch, rows)})
        return features

    def score(self, traces: Sequence[TraceInput]) -> TraceScores:
        """Scores of every trace, in order."""
        network = self.checkpoint.network
        logits = np.empty((len(traces), network.n_class), np.float32)
        importance = [np.empty(0, np.float32)] * len(traces)
        for piece in trace_pieces(traces, network.feature_size):
            inputs = {"features": piece.features, "times": piece.times, "counts": piece.counts}
            logits[piece.rows], shares = self._trace.run(["logits", "importance"], inputs)
            for row, share, count in zip(piece.rows.tolist(), shares, piece.counts.tolist(), strict=True):
                importance[row] = share[:count].copy()
        return TraceScores(logits, importance)
