"""The student of a flow checkpoint: a small network that answers the flows it is sure of, in the whole one's place.

It reads the first content bytes and payload lengths of a flow, each as one of `VALUES` symbols, and adds up the rows
of a table that are theirs; two layers follow. All of it is whole numbers, so that what it says of a flow, and with it
which flows it answers, does not depend by a single bit on the flows beside it or on the machine. How it is taught
belongs to `training`, its file to `student_file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.encode import Mm4flowFeatures, contents
from tapline.models.flow import Flow
from tapline.models.packed_packets import join_lengths

VALUES = 257
"""Symbols of a field: a byte, or the bucket of a signed payload length, or that there is none."""

ABSENT = 256

LARGEST = 127
"""A weight is a whole number from -127 to 127."""

ACTIVATION_LEVELS = 255
"""A hidden number is 0 to 255."""

TABLE_UNIT, HIDDEN_UNIT, OUTPUT_UNIT = 32, 64, 32
"""A weight of 1 is so much of 1: 1/32 in the table, whose sums are hidden numbers as they are."""

MOST_WIDE = 256
"""Widest layer: sums of so many products of weights and hidden numbers are exact in float32, in whatever order."""

LARGEST_TABLE_BIAS, LARGEST_BIAS = 1 << 12, 1 << 20

MAX_PIECE_FLOWS = 256
"""Flows that are computed at once: what they take stays in a core's cache."""

_ALONE = 1 << 18
"""Multiplications of a product that OpenBLAS computes in the calling thread; others it shares with threads that then
spin for milliseconds, which costs ten times what the student does."""

_EXACT_LENGTHS, _PER_OCTAVE, _NEGATIVE = 48, 16, 128
_BUCKETED = 1500


class StudentNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a student reads of a flow, content bytes each way and payload lengths, and how wide its two layers are."""

    content_bytes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 24
    payload_lengths: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    table_width: Annotated[int, msgspec.Meta(ge=1, le=MOST_WIDE)] = 128
    hidden_width: Annotated[int, msgspec.Meta(ge=1, le=MOST_WIDE)] = 64

    @property
    def fields(self) -> int:
        """Symbols that are read of a flow."""
        return 2 * self.content_bytes + self.payload_lengths


class Student(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The student of a checkpoint, as its manifest has it.

    It answers a flow where the calibrated confidence of its verdict, in the flow's context, is at least `threshold`, or
    where ports are not read `threshold_without_ports`; the whole network answers the others. Both lie above the one of
    *unknown*, which the whole network alone says.
    """

    network: StudentNetwork
    threshold: Annotated[float, msgspec.Meta(gt=0, le=1)]
    threshold_without_ports: Annotated[float, msgspec.Meta(gt=0, le=1)]


class StudentScores(NamedTuple):
    """What a student says of n flows: logits float32 [n, classes] and embeddings float32 [n, width], as the whole
    network would."""

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True)
class StudentWeights:
    """The numbers of a student: `table` int8 [fields, VALUES, T], `hidden` int8 [H, T], `logits` int8 [classes, H],
    `embedding` int8 [width, H], and the bias of each, int32."""

    table: NDArray[np.int8]
    table_bias: NDArray[np.int32]
    hidden: NDArray[np.int8]
    hidden_bias: NDArray[np.int32]
    logits: NDArray[np.int8]
    logits_bias: NDArray[np.int32]
    embedding: NDArray[np.int8]
    embedding_bias: NDArray[np.int32]


class StudentModel:
    """A student ready for flows."""

    def __init__(self, network: StudentNetwork, features: Mm4flowFeatures, weights: StudentWeights) -> None:
        """`features` of the checkpoint: where those mask addresses, the student reads none either."""
        self._network = network
        self._features = features
        self._table = weights.table.reshape(-1, network.table_width)
        self._starts = np.arange(network.fields) * VALUES
        self._table_bias = weights.table_bias.astype(np.int16)
        self._hidden, self._hidden_bias = weights.hidden.T.astype(np.float32), weights.hidden_bias.astype(np.float32)
        outputs = np.concatenate((weights.logits, weights.embedding))
        self._outputs = outputs.T.astype(np.float32)
        self._outputs_bias = np.concatenate((weights.logits_bias, weights.embedding_bias)).astype(np.float32)
        self._classes = len(weights.logits)

    def scores(self, flows: Sequence[Flow]) -> StudentScores:
        """What it says of n flows, in their order."""
        starts = range(0, len(flows), MAX_PIECE_FLOWS)
        parts = [self._outputs_of(flows[start : start + MAX_PIECE_FLOWS]) for start in starts]
        outputs = np.concatenate(parts) if parts else np.zeros((0, len(self._outputs_bias)), np.float32)
        return StudentScores(outputs[:, : self._classes], outputs[:, self._classes :])

    def _outputs_of(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        """Logits and embeddings side by side; every sum is of whole numbers that float32 holds."""
        rows = symbols(flows, self._network, self._features) + self._starts  # [n, fields]
        summed = np.take(self._table, rows, axis=0).sum(axis=1, dtype=np.int16) + self._table_bias  # [n, T]
        first = np.clip(summed, 0, ACTIVATION_LEVELS).astype(np.float32)
        second = np.floor((_product(first, self._hidden) + self._hidden_bias) / HIDDEN_UNIT)
        np.clip(second, 0, ACTIVATION_LEVELS, out=second)
        found = _product(second, self._outputs) + self._outputs_bias
        return found / np.float32(TABLE_UNIT * OUTPUT_UNIT)


def _product(rows: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """`rows @ weights`, float32 [n, k] and [k, m], a few rows at a time."""
    at_once = max(1, _ALONE // weights.size)
    padded = np.zeros((-(-len(rows) // at_once) * at_once, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    stacked = padded.reshape(-1, at_once, rows.shape[1]) @ weights
    return stacked.reshape(-1, weights.shape[1])[: len(rows)]


def symbols(flows: Sequence[Flow], network: StudentNetwork, features: Mm4flowFeatures) -> NDArray[np.int64]:
    """What a student reads of n flows, int64 [n, fields]: first content bytes of the originator, of the responder,
    first payload lengths."""
    found = np.full((len(flows), network.fields), ABSENT, np.int64)
    width = network.content_bytes
    for side, parts in enumerate(zip(*contents(flows, features), strict=True)):
        columns = slice(side * width, (side + 1) * width)
        found[:, columns] = _bytes_of(parts, width)
    joined = join_lengths(flows, network.payload_lengths)
    bucket = _BUCKETS[np.minimum(np.abs(joined.lengths.astype(np.int64)), _BUCKETED)]
    there = np.arange(network.payload_lengths) < joined.counts[:, np.newaxis]
    found[:, 2 * width :][there] = bucket + _NEGATIVE * (joined.lengths < 0)
    return found


def _bytes_of(parts: Sequence[bytes], width: int) -> NDArray[np.int64]:
    """The first `width` bytes of each, int64 [n, width]."""
    raw = np.frombuffer(b"".join([part[:width].ljust(width, b"\0") for part in parts]), np.uint8)
    counts = np.fromiter(map(len, parts), np.int64, len(parts))
    there = np.arange(width) < counts[:, np.newaxis]
    found: NDArray[np.int64] = np.where(there, raw.reshape(len(parts), width).astype(np.int64), ABSENT)
    return found


def _buckets() -> NDArray[np.int64]:
    """The bucket of each payload length up to `_BUCKETED`, 0 to 127: short ones exactly, then 16 to an octave."""
    lengths = np.arange(_BUCKETED + 1)
    steps = np.floor(_PER_OCTAVE * np.log2(np.maximum(lengths, _EXACT_LENGTHS) / _EXACT_LENGTHS)).astype(np.int64)
    found: NDArray[np.int64] = np.minimum(np.minimum(lengths, _EXACT_LENGTHS) + steps, _NEGATIVE - 1)
    return found


_BUCKETS = _buckets()
