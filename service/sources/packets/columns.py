"""Decodes a block of captured packets at once, as numpy columns: Ethernet with VLAN tags, Linux cooked and raw IP; IPv4
without fragments, IPv6 without extension headers; TCP, UDP, ICMP and, over IPv4, what has no ports. Everything else it
hands to `frames` one by one, so both must decide alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt

from tapline.service.sources.packets.ethertypes import ETHERNET_TYPES, LEAD_ON
from tapline.service.sources.packets.frames import ETHERNET, LINUX_COOKED, LINUX_COOKED_2, RAW_LINK_TYPES, FrameDecoder
from tapline.service.sources.packets.icmp import COUNTERPARTS_V4, COUNTERPARTS_V6, ONE_WAY
from tapline.service.sources.packets.ip import NOT_TRANSPORT, Frame
from tapline.service.sources.packets.layouts import IPV4, IPV6, TRANSPORT, Bytes, be16, be32, gather, pick
from tapline.service.sources.packets.packet_columns import KEY_BYTES, PacketColumns
from tapline.service.sources.packets.packet_rows import (
    CLOCK,
    ICMP,
    ICMP6,
    TCP,
    UDP,
    UDP_TUNNEL,
    Int64Array,
    PacketBlock,
    PacketRow,
    ReadCounters,
)
from tapline.service.sources.packets.ports import TUNNEL_PORTS

Mask = npt.NDArray[np.bool_]

_SHORTEST_IP_BYTES = 20
_TUNNEL_PORT = np.zeros(65_536, dtype=np.bool_)
_TUNNEL_PORT[list(TUNNEL_PORTS)] = True
_LEADS_NOWHERE = np.arange(65_536) >= ETHERNET_TYPES
_LEADS_NOWHERE[list(LEAD_ON)] = False
_IS_BARE = np.ones(256, dtype=np.bool_)
"""Which protocols over IPv4 have no header that is read."""
_IS_BARE[[TCP, UDP, ICMP, ICMP6, *NOT_TRANSPORT]] = False
_TEREDO_PREFIX = 0x20010000

TRACEGRAM_LINKS = {ETHERNET: 3, LINUX_COOKED: 9, LINUX_COOKED_2: 20, 0: 1, 108: 1}
"""Tracegram's link-type byte by link type; raw IP is `TRACEGRAM_RAW_IPV4` or `TRACEGRAM_RAW_IPV6`, others have none."""
TRACEGRAM_RAW_IPV4 = 21
TRACEGRAM_RAW_IPV6 = 6


class BlockDecoder:
    """Packet blocks to the packets of flows, in order."""

    def __init__(self, frames: FrameDecoder, counters: ReadCounters) -> None:
        self._frames = frames
        self._counters = counters

    def packets(self, block: PacketBlock) -> PacketColumns:
        """The packets of flows in a block."""
        columns, left = self._decode(block)
        return columns.packets(
            [(packet, row) for packet in left.tolist() for row in self._others(block, columns, packet)]
        )

    def count(self, block: PacketBlock) -> None:
        """Counts what `packets` would count of a block, without making them."""
        columns, left = self._decode(block)
        for packet in left[~columns.counted[left]].tolist():
            self._one(block, packet)

    def _decode(self, block: PacketBlock) -> tuple[_Columns, Int64Array]:
        """The columns of the ordinary packets, and which of the others to decode one by one."""
        self._correct_wire(block)
        raw = np.frombuffer(block.data, dtype=np.uint8)
        ip_start, is_other = _ip_starts(raw, block)
        is_foreign = self._skip_foreign(block.link)
        is_short = (block.captured < _SHORTEST_IP_BYTES) & ~is_foreign
        self._skip("not IP", is_other)
        self._skip("link layer cut", is_short)
        columns = _Columns(block, raw)
        version = np.where(ip_start >= 0, raw[np.maximum(ip_start, 0)] >> 4, 0)
        for wanted, decode in ((4, columns.take_ipv4), (6, columns.take_ipv6)):
            chosen = np.flatnonzero(version == wanted)
            if len(chosen):
                decode(chosen, ip_start[chosen])
        columns.counted = is_other | is_short | is_foreign
        columns.leading = _leads_a_clock_that_steps_back(block.time_us)
        return columns, np.flatnonzero(~(columns.done | (columns.counted & ~columns.leading)))

    def _skip_foreign(self, links: Int64Array) -> Mask:
        """Counts the packets of link types that cannot be decoded, and says which they are."""
        is_foreign = np.zeros(len(links), dtype=np.bool_)
        for link, chosen in _by_link(links):
            if not self._frames.knows(link):
                is_foreign[chosen] = True
                self._skip(f"link type {link}, which is not supported", is_foreign[chosen])
        return is_foreign

    def _correct_wire(self, block: PacketBlock) -> None:
        """No packet was shorter on the wire than what was captured of it, whatever the file says."""
        wrong = block.wire < block.captured
        if wrong.any():
            self._counters.beyond_zeek["an original length below what was captured"] += int(wrong.sum())
            block.wire = np.maximum(block.wire, block.captured)

    def _skip(self, reason: str, packets: Mask) -> None:
        if packets.any():
            self._counters.skipped[reason] += int(packets.sum())

    def _others(self, block: PacketBlock, columns: _Columns, packet: int) -> list[PacketRow]:
        """The rows of a packet that the columns do not hold."""
        found = [] if columns.counted[packet] else self._one(block, packet)
        return found or ([_clock_row(int(block.time_us[packet]))] if columns.leading[packet] else [])

    def _one(self, block: PacketBlock, packet: int) -> list[PacketRow]:
        link = int(block.link[packet])
        start, captured = int(block.start[packet]), int(block.captured[packet])
        tracegram = TRACEGRAM_LINKS.get(link, 0)
        if link in RAW_LINK_TYPES and captured:
            tracegram = TRACEGRAM_RAW_IPV6 if block.data[start] >> 4 == 6 else TRACEGRAM_RAW_IPV4
        end = start + captured
        frame = Frame(
            data=block.data, time_us=int(block.time_us[packet]), start=start, end=end,
            wire_end=start + int(block.wire[packet]), link=tracegram,
            outer=block.data, outer_start=start, outer_end=end,
        )  # fmt: skip
        return self._frames.decode(frame, link)


def _leads_a_clock_that_steps_back(time_us: Int64Array) -> Mask:
    """Which packets are later than all before them, in a block in which a later packet is not; none elsewhere."""
    latest = np.maximum.accumulate(time_us)
    if (time_us == latest).all():
        return np.zeros(len(time_us), dtype=np.bool_)
    return cast("Mask", np.concatenate(([True], time_us[1:] > latest[:-1])))


def _clock_row(time_us: int) -> PacketRow:
    return PacketRow(time_us, b"", 0, CLOCK, 0, 0, 0, 0, 0, 0, b"", 0, b"", 0, 0, 0, 0)


def _ip_starts(raw: Bytes, block: PacketBlock) -> tuple[Int64Array, Mask]:
    """Where IP begins in each packet, -1 if that takes more than tags to find; and what is not IP."""
    ip_start = np.full(len(block.start), -1, dtype=np.int64)
    is_other = np.zeros(len(block.start), dtype=np.bool_)
    for link, chosen in _by_link(block.link):
        start, captured = block.start[chosen], block.captured[chosen]
        if link == ETHERNET:
            usable = captured > 16
            at, ethertype = start + 14, be16(raw, start + 12)
            for tags in ((0x8100, 0x88A8, 0x9100), (0x8100,)):
                tagged = np.isin(ethertype, tags) & (start + captured - at > 4)
                if not tagged.any():
                    break
                ethertype = np.where(tagged, be16(raw, at + 2), ethertype)
                at = at + 4 * tagged
        elif link in (LINUX_COOKED, LINUX_COOKED_2):
            header, type_at = (16, 14) if link == LINUX_COOKED else (20, 0)
            usable, at, ethertype = captured > header, start + header, be16(raw, start + type_at)
        elif link in RAW_LINK_TYPES:
            usable, at, ethertype = captured > 0, start, np.full(len(start), 0x0800)
        else:
            continue
        is_ip = usable & ((ethertype == 0x0800) | (ethertype == 0x86DD))
        ip_start[chosen] = np.where(is_ip, at, -1)
        if link not in RAW_LINK_TYPES:
            is_other[chosen] = usable & (captured >= _SHORTEST_IP_BYTES) & _LEADS_NOWHERE[ethertype]
    return ip_start, is_other


def _by_link(links: Int64Array) -> Iterator[tuple[int, Int64Array | slice]]:
    first = int(links[0])
    if (links == first).all():
        yield first, slice(None)
        return
    for link in np.unique(links).tolist():
        yield link, np.flatnonzero(links == link)


class _Columns:
    """The columns of a block's rows; `done` says for which packets they are filled, `counted` which are no flow's,
    `leading` by which of those time passes."""

    def __init__(self, block: PacketBlock, raw: Bytes) -> None:
        count = len(block.start)
        self._block = block
        self._raw = raw
        self.done: Mask = np.zeros(count, dtype=np.bool_)
        self.counted: Mask = np.zeros(count, dtype=np.bool_)
        self.leading: Mask = np.zeros(count, dtype=np.bool_)
        self._keys = np.zeros((count, KEY_BYTES), dtype=np.uint8)
        names = ("side", "kind", "length", "total", "have", "offset", "flags", "seq", "ack", "link")
        self._ints = {name: np.zeros(count, dtype=np.int64) for name in names}

    def packets(self, others: list[tuple[int, PacketRow]]) -> PacketColumns:
        """The packets that are done, and `others` with their places in the block, in order."""
        block = self._block
        chosen: Int64Array | slice = slice(None) if self.done.all() else np.flatnonzero(self.done)
        keys, numbers = self._keys[chosen], {name: column[chosen] for name, column in self._ints.items()}
        numbers["time_us"] = block.time_us[chosen]
        numbers["head_start"], numbers["head_end"] = block.start[chosen], numbers["offset"]
        numbers["frame_end"] = numbers["head_start"] + block.captured[chosen]
        if not others:
            return PacketColumns(keys, numbers, block.data, {})
        places = np.concatenate((np.flatnonzero(self.done), [place for place, _ in others]))
        order = np.argsort(places, kind="stable")
        other_keys = np.array([row.key for _, row in others], dtype=f"S{KEY_BYTES}").view(np.uint8)
        keys = np.concatenate((keys, other_keys.reshape(-1, KEY_BYTES)))[order]
        for name, column in numbers.items():
            added = np.array([getattr(row, name) for _, row in others], dtype=np.int64)
            numbers[name] = np.concatenate((column, added))[order]
        where = np.flatnonzero(order >= len(order) - len(others)).tolist()  # in order, as `others` are
        odd = {place: (row.data, row.frame) for place, (_, row) in zip(where, others, strict=True)}
        odd = {place: pair for place, pair in odd.items() if pair[0] is not block.data or pair[1] is not block.data}
        return PacketColumns(keys, numbers, block.data, odd)

    def take_ipv4(self, chosen: Int64Array, start: Int64Array) -> None:
        """Fills the columns of the IPv4 packets `chosen`, whose IP headers are at `start`, where they are ordinary."""
        header = gather(self._raw, start, IPV4)
        length = (header["length"] & 15).astype(np.int64) * 4
        total = header["total"].astype(np.int64)
        ordinary = (length >= 20) & (header["fragment"] & 0x3FFF == 0)
        chosen, start, length, total = self._bounded(chosen, start, length, total, ordinary)
        header = pick(header, self._kept)
        self._take(chosen, start, length, total, header, 4)

    def take_ipv6(self, chosen: Int64Array, start: Int64Array) -> None:
        """The same for IPv6."""
        header = gather(self._raw, start, IPV6)
        total = header["payload"].astype(np.int64) + 40
        ordinary = header["payload"] > 0
        length = np.full(len(chosen), 40, dtype=np.int64)
        chosen, start, length, total = self._bounded(chosen, start, length, total, ordinary)
        header = pick(header, self._kept)
        self._take(chosen, start, length, total, header, 6)

    def _bounded(
        self, chosen: Int64Array, start: Int64Array, length: Int64Array, total: Int64Array, ordinary: Mask
    ) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
        """Leaves out what is not within its frame; `_kept` says what stayed."""
        block = self._block
        before = start - block.start[chosen]
        available = block.captured[chosen] - before
        fits = (total >= length) & (available >= np.maximum(length, 20)) & (block.wire[chosen] - before >= total)
        self._kept = np.flatnonzero(ordinary & fits)
        kept = self._kept
        return chosen[kept], start[kept], length[kept], total[kept]

    def _take(
        self,
        chosen: Int64Array,
        start: Int64Array,
        header_bytes: Int64Array,
        total: Int64Array,
        header: npt.NDArray[np.void],
        version: int,
    ) -> None:
        """Fills the columns from the transport headers on; a list of columns, longer than house style has functions."""
        block = self._block
        body = start + header_bytes
        payload = total - header_bytes
        available = block.start[chosen] + block.captured[chosen] - body
        protocol = header["protocol"].astype(np.int64)
        transport = gather(self._raw, body, TRANSPORT)
        is_tcp, is_udp = protocol == TCP, protocol == UDP
        is_icmp = (protocol == ICMP) | (protocol == ICMP6)
        is_bare = _IS_BARE[protocol] if version == 4 else np.zeros(len(protocol), dtype=np.bool_)
        transport["source"][is_bare] = transport["target"][is_bare] = 0
        size = np.where(is_tcp, (transport["size"] >> 4).astype(np.int64) * 4, np.where(is_bare, 0, 8))
        usable = (is_tcp & (size >= 20)) | is_udp | is_icmp | is_bare
        keep = np.flatnonzero(usable & (size <= payload) & (size <= available))
        chosen, header, transport = chosen[keep], pick(header, keep), pick(transport, keep)
        body, size, payload, available = body[keep], size[keep], payload[keep], available[keep]
        protocol, is_tcp = protocol[keep], is_tcp[keep]
        side = self._fill_keys(chosen, header, transport, protocol, version)
        length = payload - size
        offset = body + size
        have = np.minimum(available, payload) - size
        raw_link = TRACEGRAM_RAW_IPV4 if version == 4 else TRACEGRAM_RAW_IPV6
        links = np.full(len(chosen), raw_link)
        for link, byte in TRACEGRAM_LINKS.items():
            links[block.link[chosen] == link] = byte
        filled = {
            "side": side,
            "kind": np.where(self._maybe_tunnel(protocol, transport, offset, have), UDP_TUNNEL, protocol),
            "length": length,
            "total": total[keep],
            "have": have,
            "offset": offset,
            "flags": np.where(is_tcp, transport["flags"], 0),
            "seq": np.where(is_tcp, transport["seq"], 0),
            "ack": np.where(is_tcp, transport["ack"], 0),
            "link": links,
        }
        for name, column in filled.items():
            self._ints[name][chosen] = column
        self.done[chosen] = True

    def _maybe_tunnel(
        self, protocol: Int64Array, transport: npt.NDArray[np.void], offset: Int64Array, have: Int64Array
    ) -> Mask:
        """Which packets are UDP datagrams that `tunnels` has to look at."""
        is_udp = protocol == UDP
        found = is_udp & (_TUNNEL_PORT[transport["source"]] | _TUNNEL_PORT[transport["target"]])
        udp = np.flatnonzero(is_udp & (have >= 3))
        if len(udp):
            raw, at = self._raw, offset[udp]
            first, second = raw[at], raw[at + 1]
            suspect = (second == 0x52) & (raw[at + 2] == 0x11)
            long = have[udp] >= 40
            suspect |= _is_teredo_header(raw, at, have[udp], first, second)
            six = np.flatnonzero(long & (first >> 4 == 6))
            if len(six):
                prefixes = [be32(raw, at[six] + place) == _TEREDO_PREFIX for place in (8, 24)]
                suspect[six] |= prefixes[0] | prefixes[1]
            found[udp] |= suspect
        return cast("Mask", found)

    def _fill_keys(
        self,
        chosen: Int64Array,
        header: npt.NDArray[np.void],
        transport: npt.NDArray[np.void],
        protocol: Int64Array,
        version: int,
    ) -> Int64Array:
        """Writes the flow keys and returns the sides that the packets come from."""
        is_icmp = (protocol == ICMP) | (protocol == ICMP6)
        source_port = transport["source"].astype(np.uint64)
        target_port = transport["target"].astype(np.uint64)
        ordered = np.ones(len(chosen), dtype=np.bool_)
        if is_icmp.any():
            kind = transport["type"]
            counterpart = np.where(protocol == ICMP, COUNTERPARTS_V4[kind], COUNTERPARTS_V6[kind])
            ordered = ~is_icmp | (counterpart != ONE_WAY)
            answer = np.where(counterpart != ONE_WAY, counterpart, transport["code"]).astype(np.uint64)
            source_port = np.where(is_icmp, kind, source_port)
            target_port = np.where(is_icmp, answer, target_port)
        source, target = header["source"].astype(np.uint64), header["target"].astype(np.uint64)
        if version == 4:
            swapped = (source << np.uint64(16) | source_port) > (target << np.uint64(16) | target_port)
        else:
            high, low = source[:, 0], source[:, 1]
            other_high, other_low = target[:, 0], target[:, 1]
            same_address = (high == other_high) & (low == other_low)
            swapped = np.where(high == other_high, low > other_low, high > other_high)
            swapped |= same_address & (source_port > target_port)
        swapped &= ordered
        self._write_keys(chosen, header, source_port, target_port, swapped, protocol, version)
        return swapped.astype(np.int64)

    def _write_keys(
        self,
        chosen: Int64Array,
        header: npt.NDArray[np.void],
        source_port: npt.NDArray[np.uint64],
        target_port: npt.NDArray[np.uint64],
        swapped: Mask,
        protocol: Int64Array,
        version: int,
    ) -> None:
        width = 4 if version == 4 else 16
        keys = np.empty((len(chosen), 2 * width + 6), dtype=np.uint8)
        choice = swapped[:, None]
        ends = ((header["source_bytes"], source_port), (header["target_bytes"], target_port))
        ports = [np.ascontiguousarray(port.astype(">u2")).view(np.uint8).reshape(-1, 2) for _, port in ends]
        keys[:, :width] = np.where(choice, ends[1][0], ends[0][0])
        keys[:, width : width + 2] = np.where(choice, ports[1], ports[0])
        keys[:, width + 2 : 2 * width + 2] = np.where(choice, ends[0][0], ends[1][0])
        keys[:, 2 * width + 2 : 2 * width + 4] = np.where(choice, ports[0], ports[1])
        keys[:, -2] = protocol
        keys[:, -1] = version
        self._keys[chosen, : keys.shape[1]] = keys


def _is_teredo_header(raw: Bytes, at: Int64Array, have: Int64Array, first: Bytes, second: Bytes) -> Mask:
    """Which payloads begin with Teredo's authentication or origin header and then IPv6."""
    origin = at.copy()
    authenticated = (first == 0) & (second == 1)
    origin[authenticated] += 13 + raw[at + 2][authenticated].astype(np.int64) + raw[at + 3][authenticated]
    inside = (first == 0) & (second <= 1) & (have >= origin - at + 48)
    origin[~inside] = 0
    plausible = inside & (raw[origin] == 0) & (raw[origin + 1] == 0) & (raw[origin + 8] >> 4 == 6)
    return cast("Mask", plausible)
