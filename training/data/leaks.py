"""Leaks: flows on one side of a split that are on the other side too, the same or nearly. Splits belong elsewhere."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.encode import Mm4flowFeatures
from tapline.training.data.partition import PARTS
from tapline.training.data.store import StoredFlows, StoredSamples

NEAR_LENGTHS = 8
NEAR_BYTES = 64
NEAR_SHARE = 0.9
"""Nearly the same: equal first `NEAR_LENGTHS` payload lengths, and so large a share of the first `NEAR_BYTES` content
bytes each way equal, place by place."""
COMPARED = 512
"""Flows for training that a flow is compared with at most, of those with its first lengths."""


class Leak(msgspec.Struct, frozen=True):
    """Of `flows` flows in `part`, so many have their like among the flows for training, in another group or not."""

    part: str
    flows: int
    same: int
    near: int
    near_of_other_label: int


def find_leaks(samples: StoredSamples, parts: NDArray[np.int64], features: Mm4flowFeatures) -> list[Leak]:
    """For validation and test: flows that a model which reads `features` cannot tell from one that it is trained on.

    `near` includes `same`. `near_of_other_label` counts those whose like bears another label: what no model gets right.
    """
    kinds = samples.flows.kinds(features.payload_lengths, features.content_bytes)
    train = np.flatnonzero(parts == 0)
    known = set(kinds[train].tolist())
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for row in train.tolist():
        alike[_first_lengths(samples.flows, row)].append(row)
    leaks = []
    for place, part in enumerate(PARTS[1:], 1):
        rows = np.flatnonzero(parts == place).tolist()
        same = [row for row in rows if int(kinds[row]) in known]
        near = {row: found for row in rows if (found := _near(samples.flows, row, alike)) is not None}
        other = sum(
            samples.labels[row] >= 0 and not (samples.labels[found] == samples.labels[row]).any()
            for row, found in near.items()
        )
        if rows:
            leaks.append(Leak(part, len(rows), len(same), len(near.keys() | set(same)), int(other)))
    return leaks


def _first_lengths(flows: StoredFlows, row: int) -> bytes:
    return np.array(flows[row].payload_lengths[:NEAR_LENGTHS], np.int32).tobytes()


def _near(flows: StoredFlows, row: int, alike: dict[bytes, list[int]]) -> NDArray[np.int64] | None:
    """The flows for training that are nearly this one, None without any."""
    rows = np.array(alike.get(_first_lengths(flows, row), [])[:COMPARED], np.int64)
    if not len(rows):
        return None
    mine, theirs = _content(flows, [row])[0], _content(flows, rows.tolist())
    real = (mine >= 0) | (theirs >= 0)
    share = ((mine == theirs) & real).sum(1) / np.maximum(real.sum(1), 1)
    near = rows[(share >= NEAR_SHARE) | ~real.any(1)]
    return near if len(near) else None


def _content(flows: StoredFlows, rows: list[int]) -> NDArray[np.int16]:
    """The first content bytes each way, -1 where there is none, int16 [n, 2 * NEAR_BYTES]."""
    table = np.full((len(rows), 2 * NEAR_BYTES), -1, np.int16)
    for line, row in zip(table, rows, strict=True):
        flow = flows[row]
        for start, content in ((0, flow.orig_bytes), (NEAR_BYTES, flow.resp_bytes)):
            head = np.frombuffer(content[:NEAR_BYTES], np.uint8)
            line[start : start + len(head)] = head
    return table
