"""The torch engine: the same scores from `model.safetensors`, on a GPU where there is one. Needs the extra `gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.checkpoint import WEIGHTS, read_checkpoint
from models.encode import TokenBatch, pad
from models.mm4flow import Mm4flow
from service.engines.base import Scores, padding, pieces
from service.engines.torch_weights import load_weights


class TorchEngine:
    """Runs a checkpoint in float32; `threads` is torch's own count for the process, 0 leaves it."""

    def __init__(self, directory: Path, threads: int = 0) -> None:
        self.checkpoint = read_checkpoint(directory, needs=(WEIGHTS,))
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = Mm4flow(self.checkpoint.network)
        load_weights(directory / WEIGHTS, model, lambda name: ".cls." in name)  # masked-token heads are for training
        self._model = model.eval().to(self._device)

    @torch.inference_mode()
    def run(self, batch: TokenBatch) -> Scores:
        """Scores of every flow of the batch, in its order."""
        network = self.checkpoint.network
        logits = np.empty((len(batch), network.n_class), np.float32)
        embeddings = np.empty((len(batch), 2 * network.d_model), np.float32)
        padding_tokens = 0
        for rows in pieces(batch):
            padding_tokens += padding(batch, rows)
            inputs = (
                torch.from_numpy(pad(tokens, offsets, rows)).to(self._device)
                for tokens, offsets in (
                    (batch.ps_tokens, batch.ps_offsets),
                    (batch.bytes_tokens, batch.bytes_offsets),
                    (batch.bytes_types, batch.bytes_offsets),
                )
            )
            output = self._model(*inputs)
            logits[rows] = output.logits.float().cpu().numpy()
            embeddings[rows] = output.embedding.float().cpu().numpy()
        return Scores(logits, embeddings, padding_tokens)
