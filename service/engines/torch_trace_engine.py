"""The torch engine for traces: the same scores from `model.safetensors`, on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tapline.models.checkpoint import read_trace_checkpoint
from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.models.packet_tokens import PacketTokens, encode_packets, pad_packets
from tapline.models.tracegram import FlowEncoder, Tracegram, is_for_training
from tapline.service.engines.devices import FIRST_GPU, Device
from tapline.service.engines.engine import Precision
from tapline.service.engines.torch_common import (
    copied_back,
    load_weights,
    on_device,
    pick_device,
    set_threads,
)
from tapline.service.engines.torch_engine import Mm4flowRunner
from tapline.service.engines.trace_engine import TraceInput, TraceScores, no_encoder, packet_pieces, trace_pieces


class TorchTraceEngine:
    """Runs a trace checkpoint on one device; arguments as of `service.engines.torch_engine.TorchEngine`.

    With bfloat16 the flow encoder computes in it. Aggregation and head are small and stay in float32.
    """

    def __init__(
        self, directory: Path, threads: int = 0, precision: Precision = "float32", device: Device = FIRST_GPU
    ) -> None:
        self.checkpoint = read_trace_checkpoint(directory, needs=())
        set_threads(threads)
        self._device = pick_device(device)
        self.provider = device.said(f"torch on {self._device}")
        own = self.checkpoint.mm4flow
        model = Tracegram(self.checkpoint.network, mm4flow=own.network if own else None)
        load_weights(directory, self.checkpoint, model, is_for_training)
        model.eval().to(self._device)
        self._trace, self._packets, self._mm4flow = model.trace, None, None
        if isinstance(model.encoder, FlowEncoder):
            self._packets = model.encoder.bfloat16() if precision == "bfloat16" else model.encoder
        elif model.encoder is not None and own is not None:
            self._mm4flow = Mm4flowRunner(model.encoder, own.network, self._device, precision)

    def embed(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        """Features of every flow, [n, F], in order; [n, 0] where their context says all."""
        own = self.checkpoint.mm4flow
        if not self.checkpoint.network.embedding_size:
            return np.zeros((len(flows), 0), np.float32)
        if own is None or self._mm4flow is None:
            return self.embed_packets(encode_packets(flows, self.checkpoint.features))
        return self._mm4flow.run(encode(flows, own.features)).embeddings

    @torch.inference_mode()
    def embed_packets(self, batch: PacketTokens) -> NDArray[np.float32]:
        """Features by Tracegram's own encoder of sequences that are there already, [n, F], in order."""
        if self._packets is None:
            raise no_encoder(self.checkpoint)
        features = np.empty((len(batch), self.checkpoint.network.feature_size), np.float32)
        cut = packet_pieces(batch)
        # Every piece is queued before the first result is waited for, so that copies run beside computing.
        found = [
            copied_back(self._packets(on_device(pad_packets(batch, rows), self._device)).features.float())
            for rows in cut
        ]
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        for rows, part in zip(cut, found, strict=True):
            features[rows] = part.numpy()
        return features

    @torch.inference_mode()
    def score(self, traces: Sequence[TraceInput]) -> TraceScores:
        """Scores of every trace, in order."""
        network = self.checkpoint.network
        logits = np.empty((len(traces), network.n_class), np.float32)
        importance = [np.empty(0, np.float32)] * len(traces)
        for piece in trace_pieces(traces, network):
            arrays = (piece.features, piece.times, piece.context)
            features, times, context = (torch.from_numpy(part).to(self._device) for part in arrays)
            output = self._trace(features, times, torch.from_numpy(piece.counts), context)
            logits[piece.rows] = output.logits.float().cpu().numpy()
            shares = output.importance.float().cpu().numpy()
            for row, share, count in zip(piece.rows.tolist(), shares, piece.counts.tolist(), strict=True):
                importance[row] = share[:count].copy()
        return TraceScores(logits, importance)
