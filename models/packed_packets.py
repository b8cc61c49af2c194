"""A flow's payload lengths and packet heads as sequences over bytes, without an object for each packet.

Sources that read many flows give `Flow` these in the place of lists. They are equal to lists of the same items, and
who reads the packets of many flows takes those of either as arrays from here.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import MAX_PACKET_HEADS, Flow, PacketHead

_Item = TypeVar("_Item")
LENGTH_BYTES = 4
"""Of `PackedLengths.packed` for each length."""

_GAP_BYTES, _SIZE_BYTES = 8, 2
_NUMBERS_BYTES = _GAP_BYTES + _SIZE_BYTES


class _Packed(Sequence[_Item], Generic[_Item]):
    """Of one count and some bytes; a slice is a list."""

    __slots__ = ("_count", "packed")

    def __init__(self, count: int, packed: bytes) -> None:
        self._count = count
        self.packed = packed

    def items(self) -> list[_Item]:
        """All of it as a list."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_Item]:
        return iter(self.items())

    @overload
    def __getitem__(self, place: int) -> _Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[_Item]: ...
    def __getitem__(self, place: int | slice) -> _Item | list[_Item]:
        return self.items()[place]

    def __eq__(self, other: object) -> bool:
        if type(other) is type(self):
            return self.packed == other.packed
        return self.items() == list(other) if isinstance(other, list | tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.items())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._count, self.packed)


class PackedLengths(_Packed[int]):
    """Signed payload lengths; `packed`: int32 each, little-endian."""

    __slots__ = ()

    def items(self) -> list[int]:
        """All of it as a list."""
        return list(struct.unpack(f"<{self._count}i", self.packed))


class PackedHeads(_Packed[PacketHead]):
    """Packet heads; `packed`: the gaps in microseconds, uint64 each, then the sizes, uint16 each, then their bytes end
    to end; numbers are little-endian."""

    __slots__ = ()

    def items(self) -> list[PacketHead]:
        """All of it as a list."""
        numbers = struct.unpack_from(f"<{self._count}Q{self._count}H", self.packed)
        at, found = len(self) * _NUMBERS_BYTES, []
        for gap_us, size in zip(numbers[: self._count], numbers[self._count :], strict=True):
            found.append(PacketHead(gap_us, self.packed[at : at + size]))
            at += size
        return found


def pack_lengths(lengths: Sequence[int]) -> PackedLengths:
    """The same lengths, packed."""
    if type(lengths) is PackedLengths:
        return lengths
    return PackedLengths(len(lengths), struct.pack(f"<{len(lengths)}i", *lengths))


def packed_lengths(lengths: array[int]) -> PackedLengths:
    """Of lengths that are at hand as an array of int32."""
    return PackedLengths(len(lengths), _little_endian(lengths)) if lengths else _NO_LENGTHS


def packed_heads(gaps_us: array[int], sizes: array[int], data: bytes) -> PackedHeads:
    """Of gaps and sizes that are at hand as arrays of uint64 and uint16."""
    return PackedHeads(len(sizes), _little_endian(gaps_us) + _little_endian(sizes) + data) if sizes else _NO_HEADS


def _swapped(numbers: array[int]) -> bytes:
    numbers = numbers[:]
    numbers.byteswap()
    return numbers.tobytes()


_little_endian: Callable[[array[int]], bytes] = array.tobytes if sys.byteorder == "little" else _swapped
_NO_LENGTHS, _NO_HEADS = PackedLengths(0, b""), PackedHeads(0, b"")


def pack_heads(heads: Sequence[PacketHead]) -> PackedHeads:
    """The same heads, packed."""
    if type(heads) is PackedHeads:
        return heads
    gaps_us, pieces = [head.gap_us for head in heads], [head.data for head in heads]
    numbers = struct.pack(f"<{len(heads)}Q{len(heads)}H", *gaps_us, *map(len, pieces))
    return PackedHeads(len(heads), numbers + b"".join(pieces))


def head_bytes(heads: Sequence[PacketHead]) -> int:
    """How many bytes the heads have together."""
    if type(heads) is PackedHeads:
        return len(heads.packed) - _NUMBERS_BYTES * len(heads)
    return sum([len(head.data) for head in heads])


@dataclass(frozen=True)
class JoinedLengths:
    """The payload lengths of n flows end to end, int32 [sum], and how many are of each flow, int64 [n]."""

    lengths: NDArray[np.int32]
    counts: NDArray[np.int64]


def join_lengths(flows: Sequence[Flow], most: int) -> JoinedLengths:
    """The payload lengths of the flows, the first `most` of each."""
    all_lengths = [flow.payload_lengths for flow in flows]
    counts = np.array([min(len(each), most) for each in all_lengths], np.int64)
    if PackedLengths not in map(type, all_lengths):
        joined = chain.from_iterable([each[:most] for each in all_lengths])
        return JoinedLengths(np.fromiter(joined, np.int32, int(counts.sum())), counts)
    packed = b"".join([pack_lengths(each).packed[: most * LENGTH_BYTES] for each in all_lengths])
    return JoinedLengths(np.frombuffer(packed, "<i4").astype(np.int32, copy=False), counts)


@dataclass(frozen=True)
class JoinedHeads:
    """The heads of n flows end to end: gaps and sizes int64 [sum], `data` their bytes, and how many heads are of each
    flow, int64 [n]."""

    gaps_us: NDArray[np.int64]
    sizes: NDArray[np.int64]
    data: bytes
    counts: NDArray[np.int64]


def join_heads(flows: Sequence[Flow], most: int = MAX_PACKET_HEADS) -> JoinedHeads:
    """The heads of the flows, or the first `most` of each."""
    all_heads = [flow.heads for flow in flows]
    counts = [min(len(each), most) for each in all_heads]
    kept = np.array(counts, np.int64)
    if PackedHeads not in map(type, all_heads):
        heads = list(chain.from_iterable([each[:most] for each in all_heads]))
        gaps_us, pieces = [head.gap_us for head in heads], [head.data for head in heads]
        sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        return JoinedHeads(np.array(gaps_us, np.int64), sizes, b"".join(pieces), kept)
    packed = [pack_heads(each) for each in all_heads]
    gaps = b"".join([each.packed[: _GAP_BYTES * count] for each, count in zip(packed, counts, strict=True)])
    numbers = [
        each.packed[_GAP_BYTES * len(each) : _GAP_BYTES * len(each) + _SIZE_BYTES * count]
        for each, count in zip(packed, counts, strict=True)
    ]
    sizes = np.frombuffer(b"".join(numbers), "<u2").astype(np.int64)
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))[np.concatenate(([0], np.cumsum(kept)))]
    data = b"".join(
        [
            each.packed[_NUMBERS_BYTES * len(each) : _NUMBERS_BYTES * len(each) + size]
            for each, size in zip(packed, np.diff(ends).tolist(), strict=True)
        ]
    )
    return JoinedHeads(np.frombuffer(gaps, "<u8").astype(np.int64), sizes, data, kept)
