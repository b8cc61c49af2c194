"""The packets of flows in a block as columns, and as rows: in file order, or flow by flow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import cast

import numpy as np
import numpy.typing as npt

from tapline.service.sources.packets.packet_rows import Int64Array, PacketRow

KEY_BYTES = 40
"""Room for a flow key in `PacketColumns.keys`, in whole words; keys end with a byte that is not 0."""

# Odd numbers of no meaning. Keys that fall together are told apart all the same.
_WORDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)
_HASH = np.array(_WORDS, dtype=np.uint64)

_TWINS = {"have": "length", "head_end": "offset"}
"""Fields that say the same of nearly all packets, by the one that comes before: one list of numbers is enough."""


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

    def __post_init__(self) -> None:
        link = self.numbers["link"]
        is_even = len(link) > 0 and bool((link == link[0]).all())
        self._even_link = int(link[0]) if is_even else None

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, order: Int64Array) -> Iterator[PacketRow]:
        """The rows at these places, in this order."""
        return self._rows(order, self._texts(self.keys[order]))

    def by_flow(self, start: int, end: int, unread: Collection[str]) -> Iterator[PacketRow]:
        """The rows of `start` to `end` flow by flow, in file order within a flow. A row without `key` is of the same
        flow as the one before; its fields `unread` say nothing."""
        keys = self.keys[start:end].view(np.uint64)
        places = (keys @ _HASH >> np.uint64(48)).astype(np.uint16)  # 16 bits: sorted by radix
        order = np.argsort(places, kind="stable")
        keys = keys.take(order, axis=0)
        first = np.concatenate(([True], (keys[1:] != keys[:-1]).any(axis=1)))
        texts = np.full(len(order), None, dtype=object)
        texts[first] = self._texts(keys[first].view(np.uint8))
        return self._rows(order + start, texts.tolist(), unread)

    def _texts(self, keys: npt.NDArray[np.uint8]) -> list[bytes]:
        return cast("list[bytes]", keys.view(f"S{KEY_BYTES}")[:, 0].tolist())

    def _rows(
        self, order: Int64Array, keys: Sequence[bytes | None], unread: Collection[str] = ()
    ) -> Iterator[PacketRow]:
        """An iterator: a list of tuples would keep the garbage collector busy for as long as the decoding takes."""
        lists: dict[str, Iterable[int]] = dict.fromkeys(unread, repeat(0))
        if self._even_link is not None:
            lists["link"] = repeat(self._even_link)
        columns = {name: column[order] for name, column in self.numbers.items() if name not in lists}
        for name, column in columns.items():
            twin = _TWINS.get(name, name)
            is_same = twin != name and np.array_equal(column, columns[twin])
            lists[name] = lists[twin] if is_same else column.tolist()
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
