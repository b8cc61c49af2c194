"""The torch engine: the same scores from `model.safetensors`, on a GPU where there is one. Needs the extra `torch`.

On a GPU sequences are packed and no padding is computed; on a CPU pieces of similar length are padded, which is faster
there, and ONNX Runtime faster still.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tapline.models.checkpoint import Mm4flowNetwork, read_checkpoint
from tapline.models.encode import TokenBatch
from tapline.models.mm4flow import Mm4flow
from tapline.models.mm4flow_packed import Packed, packed_forward
from tapline.models.student_file import read_student
from tapline.service.engines.devices import FIRST_GPU, Device
from tapline.service.engines.engine import Precision, Scores
from tapline.service.engines.pieces import padding, piece_inputs, pieces
from tapline.service.engines.torch_common import (
    copied_back,
    load_weights,
    on_device,
    pick_device,
    set_threads,
)

MAX_PACKED_TOKENS = 131_072
"""Tokens of one pass over packed sequences: bounds the memory of a GPU."""


class TorchEngine:
    """Runs a checkpoint in float32 or bfloat16 on one device.

    `threads` is torch's own count for the process, 0 leaves it; `device` where it computes; `packed` forces packed
    sequences or forbids them.
    """

    def __init__(
        self,
        directory: Path,
        threads: int = 0,
        precision: Precision = "float32",
        device: Device = FIRST_GPU,
        packed: bool | None = None,
    ) -> None:
        self.checkpoint = read_checkpoint(directory, needs=())
        self.student = read_student(directory, self.checkpoint)
        set_threads(threads)
        model = Mm4flow(self.checkpoint.network)
        load_weights(
            directory, self.checkpoint, model, lambda name: ".cls." in name
        )  # masked-token heads are for training
        chosen = pick_device(device)
        self.provider = device.said(f"torch on {chosen}")
        self._runner = Mm4flowRunner(model, self.checkpoint.network, chosen, precision, packed)

    def run(self, batch: TokenBatch) -> Scores:
        """Scores of every flow of the batch, in its order."""
        return self._runner.run(batch)


class Mm4flowRunner:
    """Runs an MM4flow network of given sizes on one device; `precision` and `packed` as of `TorchEngine`."""

    def __init__(
        self,
        model: Mm4flow,
        network: Mm4flowNetwork,
        device: torch.device,
        precision: Precision,
        packed: bool | None = None,
    ) -> None:
        self._device = device
        self._network = network
        self._model = model.eval().to(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
        self._packed = device.type == "cuda" if packed is None else packed

    def run(self, batch: TokenBatch) -> Scores:
        """Scores of every flow of the batch, in its order."""
        return self._run_packed(batch) if self._packed else self._run_padded(batch)

    @torch.inference_mode()
    def _run_padded(self, batch: TokenBatch) -> Scores:
        network = self._network
        logits = np.empty((len(batch), network.n_class), np.float32)
        embeddings = np.empty((len(batch), 2 * network.d_model), np.float32)
        cut = pieces(batch)
        for rows in cut:
            inputs = (torch.from_numpy(part).to(self._device) for part in piece_inputs(batch, rows).values())
            output = self._model(*inputs)
            logits[rows] = output.logits.float().cpu().numpy()
            embeddings[rows] = output.embedding.float().cpu().numpy()
        return Scores(logits, embeddings, sum(padding(batch, rows) for rows in cut))

    @torch.no_grad()
    def _run_packed(self, batch: TokenBatch) -> Scores:
        """All passes are queued before the first result is waited for, so that copies run beside computing."""
        found = [
            copied_back(torch.cat((output.logits, output.embedding), dim=1).float())
            for start, end in _passes(batch)
            for output in [packed_forward(self._model, *self._packed_inputs(batch, start, end))]
        ]
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        network = self._network
        width = network.n_class + 2 * network.d_model
        scores = np.concatenate([part.numpy() for part in found]) if found else np.empty((0, width), np.float32)
        return Scores(scores[:, : network.n_class], scores[:, network.n_class :])

    def _packed_inputs(self, batch: TokenBatch, start: int, end: int) -> tuple[Packed, Packed]:
        no_types = np.zeros(1, np.int32)
        return (
            self._pack(batch.ps_tokens, no_types, batch.ps_offsets[start : end + 1]),
            self._pack(batch.bytes_tokens, batch.bytes_types, batch.bytes_offsets[start : end + 1]),
        )

    def _pack(self, tokens: NDArray[np.int32], types: NDArray[np.int32], offsets: NDArray[np.int64]) -> Packed:
        first, last = int(offsets[0]), int(offsets[-1])
        counts = np.diff(offsets)
        return Packed(
            tokens=on_device(tokens[first:last], self._device),
            types=on_device(types[first:last] if len(types) > 1 else types, self._device),
            offsets=on_device(offsets - first, self._device),
            longest=int(counts.max()),
            shortest=int(counts.min()),
        )


def _passes(batch: TokenBatch) -> list[tuple[int, int]]:
    """Ranges of flows of at most `MAX_PACKED_TOKENS` tokens each; a single flow always fits."""
    ends = batch.ps_offsets[1:] + batch.bytes_offsets[1:]
    found: list[tuple[int, int]] = []
    start = before = 0
    while start < len(batch):
        end = max(start + 1, int(np.searchsorted(ends, before + MAX_PACKED_TOKENS, side="right")))
        found.append((start, end))
        start, before = end, int(ends[end - 1])
    return found
