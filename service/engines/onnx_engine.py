"""The ONNX Runtime engine on CPU, or CUDA where its provider is installed: the default, needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import ONNX, ONNX_INT8, read_checkpoint
from tapline.models.encode import TokenBatch
from tapline.models.student_file import read_student
from tapline.service.engines.devices import FIRST_GPU, Device
from tapline.service.engines.engine import Precision, Scores
from tapline.service.engines.onnx_session import open_session
from tapline.service.engines.pieces import MM4FLOW_INPUTS, padding, piece_inputs, pieces

_ATTENTIONS = ("ps_attention", "bytes_attention")


class OnnxEngine:
    """Runs `model.onnx` of a checkpoint, or its int8 form; threads share one session."""

    def __init__(
        self, directory: Path, threads: int = 0, precision: Precision = "float32", device: Device = FIRST_GPU
    ) -> None:
        self.checkpoint = read_checkpoint(directory, needs=())
        self.student = read_student(directory, self.checkpoint)
        self._classes, self._width = self.checkpoint.network.n_class, 2 * self.checkpoint.network.d_model
        self._session = open_session(
            directory,
            self.checkpoint,
            ONNX_INT8 if precision == "int8" else ONNX,
            inputs=MM4FLOW_INPUTS,
            outputs={"logits": (None, self._classes), "embedding": (None, self._width)},
            threads=threads,
            device=device,
        )
        self.provider = self._session.provider

    def run(self, batch: TokenBatch) -> Scores:
        """Scores of every flow of the batch, in its order."""
        logits = np.empty((len(batch), self._classes), np.float32)
        embeddings = np.empty((len(batch), self._width), np.float32)
        padding_tokens = 0
        for rows in pieces(batch):
            padding_tokens += padding(batch, rows)
            shapes = {"logits": (len(rows), self._classes), "embedding": (len(rows), self._width)}
            logits[rows], embeddings[rows] = self._session.run(piece_inputs(batch, rows), shapes)
        return Scores(logits, embeddings, padding_tokens)

    def attention(self, batch: TokenBatch) -> list[NDArray[np.float32]]:
        """Where the two class tokens looked, as of `AttentiveEngine`."""
        found = [np.empty(0, np.float32)] * len(batch)
        for rows in pieces(batch):
            inputs = piece_inputs(batch, rows)
            width = inputs["ps_tokens"].shape[1]  # the columns of the bytes come after those of the lengths
            shape = (len(rows), width + inputs["bytes_tokens"].shape[1])
            shares = np.mean(self._session.run(inputs, dict.fromkeys(_ATTENTIONS, shape)), axis=0)
            for row, share in zip(rows.tolist(), shares, strict=True):
                ps, content = batch.ps_counts[row], batch.bytes_counts[row]
                found[row] = np.concatenate((share[:ps], share[width : width + content]))
        return found
