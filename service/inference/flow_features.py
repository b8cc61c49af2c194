"""What a trace model reads of a flow, as bytes: made here in the classifier, and split here for the engine.

Between the two, in open windows and in the state on disk, nobody looks into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import TracegramCheckpoint


@dataclass(frozen=True, slots=True)
class FlowFeatures:
    """What a trace checkpoint reads of a flow, and no other does; `data` is None where its encoder failed on it."""

    checkpoint: TracegramCheckpoint
    data: bytes | None


def pack(embeddings: NDArray[np.float32], context: NDArray[np.uint8] | None = None) -> list[bytes | None]:
    """The bytes of each flow: its embedding, of float32 [n, width], then its context, of uint8 [n, fields], where there
    is any. None where a number of the embedding is not finite."""
    finite = np.asarray(np.isfinite(embeddings).all(axis=1)).tolist()
    rows = np.ascontiguousarray(embeddings, np.float32).view(np.uint8).reshape(len(embeddings), -1)
    if context is not None:
        rows = np.concatenate((rows, context), axis=1)
    return [row.tobytes() if is_finite else None for row, is_finite in zip(rows, finite, strict=True)]


def split(rows: Sequence[bytes], checkpoint: TracegramCheckpoint) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The embeddings of k flows, float32 [k, width], and their context, uint8 [k, fields], for the checkpoint."""
    width = 4 * checkpoint.network.embedding_size
    table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), size_bytes(checkpoint))
    return np.ascontiguousarray(table[:, :width]).view(np.float32), table[:, width:]


def size_bytes(checkpoint: TracegramCheckpoint) -> int:
    """The size of what a checkpoint reads of each flow."""
    return 4 * checkpoint.network.embedding_size + len(checkpoint.network.context)
