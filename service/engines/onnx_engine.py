"""The ONNX Runtime engine on CPU, or CUDA where its provider is installed: the default, needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tapline.models.checkpoint import ONNX, ONNX_INT8, read_checkpoint
from tapline.models.encode import TokenBatch
from tapline.service.engines.engine import Precision, Scores
from tapline.service.engines.onnx_session import open_session
from tapline.service.engines.pieces import MM4FLOW_INPUTS, padding, piece_inputs, pieces


class OnnxEngine:
    """Runs `model.onnx` of a checkpoint, or its int8 form; threads share one session."""

    def __init__(self, directory: Path, threads: int = 0, precision: Precision = "float32") -> None:
        self.checkpoint = read_checkpoint(directory, needs=())
        self._classes, self._width = self.checkpoint.network.n_class, 2 * self.checkpoint.network.d_model
        self._session = open_session(
            directory,
            self.checkpoint,
            ONNX_INT8 if precision == "int8" else ONNX,
            inputs=MM4FLOW_INPUTS,
            outputs={"logits": (None, self._classes), "embedding": (None, self._width)},
            threads=threads,
        )

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
