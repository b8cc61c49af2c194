"""A flow's payload lengths and packet heads as sequences over bytes, without an object for each packet.

Sources that read many flows give `Flow` these in the place of lists. They are equal to lists of the same items, and
whatever reads packets by the batch takes the bytes of either from here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from tapline.models.flow import PacketHead

_Item = TypeVar("_Item")
_LENGTH_BYTES, _GAP_BYTES, _SIZE_BYTES = 4, 8, 2


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
        at, found = len(self) * (_GAP_BYTES + _SIZE_BYTES), []
        for gap_us, size in zip(numbers[: self._count], numbers[self._count :], strict=True):
            found.append(PacketHead(gap_us, self.packed[at : at + size]))
            at += size
        return found

    @property
    def data(self) -> bytes:
        """The bytes of the heads, end to end."""
        return self.packed[len(self) * (_GAP_BYTES + _SIZE_BYTES) :]


def pack_lengths(lengths: Sequence[int]) -> PackedLengths:
    """The same lengths, packed."""
    if isinstance(lengths, PackedLengths):
        return lengths
    return PackedLengths(len(lengths), struct.pack(f"<{len(lengths)}i", *lengths))


def pack_heads(heads: Sequence[PacketHead]) -> PackedHeads:
    """The same heads, packed."""
    if isinstance(heads, PackedHeads):
        return heads
    gaps_us, pieces = [head.gap_us for head in heads], [head.data for head in heads]
    numbers = struct.pack(f"<{len(heads)}Q{len(heads)}H", *gaps_us, *map(len, pieces))
    return PackedHeads(len(heads), numbers + b"".join(pieces))
