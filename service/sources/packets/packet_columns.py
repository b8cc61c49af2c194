"""The packets of flows in a block as columns, and as rows: in file order, or flow by flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import cast

import numpy as np
import numpy.typing as npt

from tapline.service.sources.packets.packet_rows import Int64Array, PacketRow

KEY_BYTES = 40
"""Room for a flow key in `PacketColumns.keys`, in whole words; keys end with a byte that is not 0."""

# Odd numbers of no meaning. Keys that fall together are told apart all the same.
_CHUNK = 256
_WORDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)
_HASH = np.array(_WORDS, dtype=np.uint64)


@dataclass
class PacketColumns:
    """What `PacketRow` says of n packets, one array for each of its fields, in file order.

    * `keys`: uint8 [n, KEY_BYTES], filled up with zeros; `numbers`: int64 [n] each, by the name of the field.
    * `data`: the bytes that hold the packets; `odd`: of those whose row has other bytes, `data` and `frame` by place in
      the columns.
    """

    keys: npt.NDArray[np.uint8]
    numbers: dict[str, Int64Array]
    data: bytes
    odd: dict[int, tuple[bytes, bytes]]
    _chunk: dict[int, list[PacketRow]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, place: int) -> PacketRow:
        """One of them."""
        start = place - place % _CHUNK
        if start not in self._chunk:
            order = np.arange(start, min(start + _CHUNK, len(self)))
            self._chunk = {start: list(self._rows(order, self._texts(self.keys[order])))}
        return self._chunk[start][place - start]

    def rows(self, start: int, end: int) -> list[PacketRow]:
        """The rows from `start` to `end`, in file order."""
        return [self.row(place) for place in range(start, end)]

    def by_flow(self, start: int, end: int) -> Iterator[PacketRow]:
        """The rows of `start` to `end` flow by flow, in file order within a flow. A row without `key` is of the same
        flow as the one before."""
        keys = self.keys[start:end].view(np.uint64)
        places = (keys @ _HASH >> np.uint64(48)).astype(np.uint16)  # 16 bits: sorted by radix
        order = np.argsort(places, kind="stable")
        keys = keys.take(order, axis=0)
        first = np.concatenate(([True], (keys[1:] != keys[:-1]).any(axis=1)))
        texts = np.full(len(order), None, dtype=object)
        texts[first] = self._texts(keys[first].view(np.uint8))
        return self._rows(order + start, texts.tolist())

    def _texts(self, keys: npt.NDArray[np.uint8]) -> list[bytes]:
        return cast("list[bytes]", keys.view(f"S{KEY_BYTES}")[:, 0].tolist())

    def _rows(self, order: Int64Array, keys: list[bytes]) -> Iterator[PacketRow]:
        """An iterator: a list of tuples would keep the garbage collector busy for as long as the decoding takes."""
        lists: dict[str, Sequence[int] | Iterator[int]] = {}
        for name, column in self.numbers.items():
            lists[name] = repeat(int(column[0])) if name == "link" and _is_even(column) else column[order].tolist()
        data: Iterator[bytes] = repeat(self.data)
        frames: Iterator[bytes] = repeat(self.data)
        if self.odd:
            own = (self.data, self.data)
            pairs = [self.odd.get(place, own) for place in order.tolist()]
            data, frames = (iter([pair[i] for pair in pairs]) for i in (0, 1))
        rows = zip(
            lists["time_us"], keys, lists["side"], lists["kind"], lists["length"], lists["total"], lists["have"],
            lists["flags"], lists["seq"], lists["ack"], data, lists["offset"], frames, lists["head_start"],
            lists["head_end"], lists["frame_end"], lists["link"], order.tolist(), strict=False,  # `repeat` has no end
        )  # fmt: skip
        return cast("Iterator[PacketRow]", rows)


def _is_even(column: Int64Array) -> bool:
    return bool(len(column)) and bool((column == column[0]).all())
