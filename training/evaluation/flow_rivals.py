"""The rivals on the same captures: a tree ensemble on lengths and leading bytes, a random forest on flow statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from tapline.models.flow import Flow

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


def statistics(flows: Sequence[Flow]) -> NDArray[np.float32]:
    """What flow records tell without content, float32 [n, 14]: of each direction the number of payload packets and the
    sum, mean, deviation, least and greatest of their lengths; the first length; how often the direction changes."""
    table = np.zeros((len(flows), 14), np.float32)
    for row, flow in zip(table, flows, strict=True):
        lengths = np.array(flow.payload_lengths, np.float32)
        for start, side in ((0, lengths[lengths > 0]), (6, -lengths[lengths < 0])):
            if len(side):
                row[start : start + 6] = len(side), side.sum(), side.mean(), side.std(), side.min(), side.max()
        row[12] = lengths[0] if len(lengths) else 0
        row[13] = np.count_nonzero(np.diff(np.sign(lengths)))
    return table


def fit_forest(
    flows: Sequence[Flow], truth: NDArray[np.int64], seed: int, processes: int = 1
) -> RandomForestClassifier:
    """Fit a random forest on `statistics`, classes balanced by weight."""
    forest = RandomForestClassifier(TREES, class_weight="balanced_subsample", random_state=seed, n_jobs=processes)
    return forest.fit(statistics(flows), truth)
