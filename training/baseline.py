"""The tree ensemble that every model must beat, on the same captures: lengths and leading bytes as plain columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

from models.flow import Flow

LENGTHS = 16
CONTENT_BYTES = 48
TREES = 300


def columns(flows: Sequence[Flow]) -> NDArray[np.int16]:
    """The first `LENGTHS` signed lengths and `CONTENT_BYTES` bytes each way; absent is 0 for lengths, -1 for bytes."""
    table = np.full((len(flows), LENGTHS + 2 * CONTENT_BYTES), -1, np.int16)
    table[:, :LENGTHS] = 0
    for row, flow in zip(table, flows, strict=True):
        lengths = np.clip(flow.payload_lengths[:LENGTHS], -32768, 32767)
        row[: len(lengths)] = lengths
        for start, content in ((LENGTHS, flow.orig_bytes), (LENGTHS + CONTENT_BYTES, flow.resp_bytes)):
            head = np.frombuffer(content[:CONTENT_BYTES], np.uint8)
            row[start : start + len(head)] = head
    return table


def fit_trees(flows: Sequence[Flow], truth: NDArray[np.int64], seed: int, processes: int = 1) -> ExtraTreesClassifier:
    """Fit the ensemble, classes balanced by weight."""
    trees = ExtraTreesClassifier(TREES, class_weight="balanced", random_state=seed, n_jobs=processes)
    return trees.fit(columns(flows), truth)
