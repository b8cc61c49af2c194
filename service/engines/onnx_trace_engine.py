"""The ONNX Runtime engine for traces on CPU, or CUDA where its provider is: the default, needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import ENCODER_ONNX, ENCODER_ONNX_INT8, TRACE_ONNX, read_trace_checkpoint
from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.models.packet_tokens import PacketTokens, encode_packets, pad_packets
from tapline.service.engines.devices import FIRST_GPU, Device
from tapline.service.engines.engine import Precision
from tapline.service.engines.onnx_session import Session, open_session
from tapline.service.engines.pieces import MM4FLOW_INPUTS, piece_inputs, pieces
from tapline.service.engines.trace_engine import TraceInput, TraceScores, no_encoder, packet_pieces, trace_pieces


class OnnxTraceEngine:
    """Runs `encoder.onnx` and `trace.onnx` of a checkpoint; threads share the sessions.

    With int8 the encoder is `encoder.int8.onnx`. Aggregation and head are small and stay in float32.
    """

    def __init__(
        self, directory: Path, threads: int = 0, precision: Precision = "float32", device: Device = FIRST_GPU
    ) -> None:
        self.checkpoint = checkpoint = read_trace_checkpoint(directory, needs=())
        network = checkpoint.network
        self._width, self._classes = network.feature_size, network.n_class
        read = {"features": network.embedding_size, "times": 2, "context": len(network.context), "counts": 1}
        self._inputs = [name for name, numbers in read.items() if numbers]
        self._encoder: Session | None = None
        if checkpoint.has_encoder:
            self._encoder = open_session(
                directory,
                checkpoint,
                ENCODER_ONNX_INT8 if precision == "int8" else ENCODER_ONNX,
                inputs=MM4FLOW_INPUTS if checkpoint.mm4flow is not None else ("tokens",),
                outputs={"features": (None, self._width)},
                threads=threads,
                device=device,
            )
        self._trace = open_session(
            directory,
            checkpoint,
            TRACE_ONNX,
            inputs=tuple(self._inputs),
            outputs={"logits": (None, self._classes), "importance": (None, None)},
            threads=threads,
            device=device,
        )
        self.provider = self._trace.provider

    def embed(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        """Features of every flow, [n, F], in order; [n, 0] where their context says all."""
        own = self.checkpoint.mm4flow
        if not self.checkpoint.network.embedding_size:
            return np.zeros((len(flows), 0), np.float32)
        if own is None:
            return self.embed_packets(encode_packets(flows, self.checkpoint.features))
        batch = encode(flows, own.features)
        return self._embed(len(batch), pieces(batch), lambda rows: piece_inputs(batch, rows))

    def embed_packets(self, batch: PacketTokens) -> NDArray[np.float32]:
        """Features by Tracegram's own encoder of sequences that are there already, [n, F], in order."""
        if self.checkpoint.network.encoder != "tracegram":
            raise no_encoder(self.checkpoint)
        return self._embed(len(batch), packet_pieces(batch), lambda rows: {"tokens": pad_packets(batch, rows)})

    def _embed(
        self,
        n_flows: int,
        cut: list[NDArray[np.int64]],
        inputs: Callable[[NDArray[np.int64]], dict[str, NDArray[np.int64]]],
    ) -> NDArray[np.float32]:
        assert self._encoder is not None
        features = np.empty((n_flows, self._width), np.float32)
        for rows in cut:
            (features[rows],) = self._encoder.run(inputs(rows), {"features": (len(rows), self._width)})
        return features

    def score(self, traces: Sequence[TraceInput]) -> TraceScores:
        """Scores of every trace, in order."""
        logits = np.empty((len(traces), self._classes), np.float32)
        importance = [np.empty(0, np.float32)] * len(traces)
        for piece in trace_pieces(traces, self.checkpoint.network):
            inputs: dict[str, NDArray[Any]] = {name: getattr(piece, name) for name in self._inputs}
            shapes = {"logits": (len(piece.rows), self._classes), "importance": piece.features.shape[:2]}
            logits[piece.rows], shares = self._trace.run(inputs, shapes)
            for row, share, count in zip(piece.rows.tolist(), shares, piece.counts.tolist(), strict=True):
                importance[row] = share[:count].copy()
        return TraceScores(logits, importance)
