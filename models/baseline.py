"""The baseline of a checkpoint: what its verdicts and embeddings look like on known traffic, as histograms.

It is an optional file of the checkpoint directory, listed and hashed like the others. A service compares with it what
its model sees now; making one belongs to `service.drift.baseline_making`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import BASELINE, UNKNOWN, AnyCheckpoint, Checkpoint, CheckpointError, read_file
from tapline.models.foreign_text import clean

BASELINE_VERSION = 1
MAX_BASELINE_BYTES = 1 << 20

CONFIDENCE_BINS = 20
"""Of equal width, from 0 to 1."""

EMBEDDING_BINS = 16
"""Along an axis: 14 of equal width over what was measured, and all that is below or above."""

MAX_AXES = 8

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Counts = Annotated[list[_Count], msgspec.Meta(min_length=EMBEDDING_BINS, max_length=EMBEDDING_BINS)]

_EDGE_SHARE = 0.01
"""Share of what was measured that lies outside of the bins of equal width, at each end of an axis."""

_DIGITS = 6


class Axis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A direction in the space of embeddings, where its bins end, and how many embeddings lay in each."""

    direction: Annotated[list[float], msgspec.Meta(min_length=1, max_length=4096)]
    edges: Annotated[list[float], msgspec.Meta(min_length=EMBEDDING_BINS - 1, max_length=EMBEDDING_BINS - 1)]
    counts: _Counts


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model said of known traffic.

    `traffic` is `training` where it is what models were made from, whose mix is no network's, and `site` where it is
    that of the network on which the model serves; `measured_on` says in words which. `labels` count verdicts by their
    label, `unknown` included; `confidence` is that in the nearest label. `axes` are the principal axes of what the
    network computes of a flow (its embedding) or, of a trace model, of a trace (its logits): none where there was too
    little.
    """

    traffic: Literal["training", "site"]
    measured_on: Annotated[str, msgspec.Meta(max_length=2000)]
    verdicts: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    unknown: _Count
    labels: dict[Annotated[str, msgspec.Meta(min_length=1, max_length=128)], _Count]
    confidence: Annotated[list[_Count], msgspec.Meta(min_length=CONFIDENCE_BINS, max_length=CONFIDENCE_BINS)]
    axes: Annotated[list[Axis], msgspec.Meta(max_length=MAX_AXES)]
    format_version: int = BASELINE_VERSION


class Projection:
    """The axes of a baseline, ready to count embeddings along them."""

    def __init__(self, axes: list[Axis]) -> None:
        self.width = len(axes[0].direction) if axes else 0
        self._directions = np.array([axis.direction for axis in axes], np.float64).reshape(len(axes), self.width)
        self._edges = [np.array(axis.edges, np.float64) for axis in axes]

    def counts(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """How many of the vectors, float32 [n, width], lie in each bin of each axis, int64 [axes, bins]; those that
        are not finite are left out."""
        kept = vectors[np.isfinite(vectors).all(axis=1)]
        along = self._directions @ kept.astype(np.float64).T  # [axes, n]
        found = [
            np.bincount(np.searchsorted(edges, values), minlength=EMBEDDING_BINS)
            for edges, values in zip(self._edges, along, strict=True)
        ]
        return np.array(found, np.int64).reshape(len(found), EMBEDDING_BINS)


def principal_axes(vectors: NDArray[np.float32]) -> list[Axis]:
    """The axes along which vectors float32 [n, width] differ most, at most `MAX_AXES`, with what they hold.

    Bins are of equal width: an edge at a quantile would lie on the very value that many equal flows share, and rounding
    would throw them from one bin into the next.
    """
    found: list[Axis] = []
    if len(vectors) < 2:
        return found
    wide = vectors.astype(np.float64)
    _, directions = np.linalg.eigh(np.cov(wide, rowvar=False).reshape(wide.shape[1], wide.shape[1]))
    for direction in directions.T[::-1][:MAX_AXES]:
        rounded = direction.round(_DIGITS)
        low, high = np.quantile(wide @ rounded, (_EDGE_SHARE, 1 - _EDGE_SHARE))
        margin = 0.05 * (high - low)
        if margin <= 1e-6:  # nothing differs along it
            break
        edges = np.linspace(low - margin, high + margin, EMBEDDING_BINS - 1).round(_DIGITS).tolist()
        axis = Axis(rounded.tolist(), edges, [0] * EMBEDDING_BINS)
        (counts,) = Projection([axis]).counts(vectors).tolist()
        found.append(msgspec.structs.replace(axis, counts=counts))
    return found


def read_baseline(directory: Path, checkpoint: AnyCheckpoint) -> Baseline | None:
    """The baseline of a checkpoint whose manifest was read, None where it has none.

    Raises:
        CheckpointError: it is not the one that was written, or does not fit the checkpoint.
    """
    record = checkpoint.files.get(BASELINE)
    if record is None:
        return None
    path = directory / BASELINE
    if record.size_bytes > MAX_BASELINE_BYTES:
        raise CheckpointError(f"{path}: {record.size_bytes} bytes, expected {MAX_BASELINE_BYTES} at most: make it anew")
    try:
        found = msgspec.json.decode(read_file(directory, checkpoint, BASELINE), type=Baseline)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a baseline: {clean(str(error))}") from None
    if fault := _fault(found, checkpoint):
        raise CheckpointError(f"{path}: {fault}: make it anew with `tapline models baseline`")
    return found


def embedding_width(checkpoint: AnyCheckpoint) -> int:
    """How many numbers a checkpoint's network gives of a flow or a trace, along whose axes a baseline counts."""
    if isinstance(checkpoint, Checkpoint):
        return 2 * checkpoint.network.d_model
    return checkpoint.network.n_class


def _fault(baseline: Baseline, checkpoint: AnyCheckpoint) -> str | None:
    """What is wrong with a baseline, or None."""
    if baseline.format_version != BASELINE_VERSION:
        return f"a baseline of version {baseline.format_version}, this tapline reads {BASELINE_VERSION}"
    if other := set(baseline.labels) - {*checkpoint.labels, UNKNOWN}:
        return f"{len(other)} labels that the checkpoint does not know"
    if sum(baseline.labels.values()) != baseline.verdicts or sum(baseline.confidence) != baseline.verdicts:
        return f"{baseline.verdicts} verdicts, and its counts are of another number"
    width = embedding_width(checkpoint)
    for axis in baseline.axes:
        if len(axis.direction) != width:
            return f"an axis of {len(axis.direction)} numbers for a network that gives {width}"
        if any(after < before for before, after in pairwise(axis.edges)) or not np.isfinite(axis.direction).all():
            return "an axis whose bins are not in order"
    return None
