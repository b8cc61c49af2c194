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


def pack(embeddings: NDArray[np.float32]) -> list[bytes | None]:
    """The bytes of each flow's embedding, of float32 [n, width]; None where one of its numbers is not finite."""
    finite = np.asarray(np.isfinite(embeddings).all(axis=1)).tolist()
    rows = embeddings.astype(np.float32, copy=False)
    return [row.tobytes() if is_finite else None for row, is_finite in zip(rows, finite, strict=True)]


def split(rows: Sequence[bytes]) -> NDArray[np.float32]:
    """The embeddings of a trace's flows, float32 [k, width]."""
    return np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1)


def size_bytes(checkpoint: TracegramCheckpoint) -> int:
    """The size of what a checkpoint reads of each flow."""
    return 4 * checkpoint.network.feature_size
