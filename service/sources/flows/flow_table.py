"""The table of live flows: packets in, finished flows out, with the lifetimes of Zeek 8.0 and a bound on live flows."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heappushpop
from itertools import islice
from operator import attrgetter
from typing import cast

import numpy as np

from tapline.models.flow import HEAD_TOKEN_COST, HEADS_TOKEN_BUDGET, Flow, HeadsKind
from tapline.service.sources.flows import tcp
from tapline.service.sources.flows.live_flow import DEAD_US, LiveFlow, TcpFlow
from tapline.service.sources.flows.orientation import inspect, orient_udp, tcp_begins_reversed
from tapline.service.sources.flows.sides import Side, TcpSide
from tapline.service.sources.packets.ip import MAX_TUNNEL_DEPTH
from tapline.service.sources.packets.packet_columns import PacketColumns
from tapline.service.sources.packets.packet_rows import (
    CLOCK,
    ICMP,
    ICMP6,
    NO_TCP_HEADER,
    TCP,
    TCP_BAD_HEADER,
    TCP_OFFLOADED,
    UDP,
    UDP_TUNNEL,
    Int64Array,
    PacketRow,
    ReadCounters,
)

MAX_LIVE_FLOWS = 32_768
"""Beyond it the flow that is nearest to its end is ended early, so that a scan cannot fill the memory."""

MAX_HOLES = 32_768
"""TCP segments that wait for what precedes them, in all flows together; beyond it a flow does without them."""

DATAGRAM_TIMEOUT_US = 60 * tcp.SECOND_US
_NEVER_US = 1 << 62
_NOT_QUEUED, _OVER = -1, -2
_FEW_PACKETS = 32
_NUMBER = attrgetter("number")
_END = attrgetter("look_us", "replaced_at", "number")
_CONTROL = tcp.FIN | tcp.SYN | tcp.RST
_SEQUENCE_MASK = 0xFFFFFFFF

_UNREAD: dict[HeadsKind, tuple[str, ...]] = {
    "none": ("head_start", "head_end", "frame_end"),
    "header": ("frame_end",),
    "full": ("head_end",),
}
"""What of packet rows no flow needs."""

InnerPackets = Callable[[PacketRow, LiveFlow, int], list[PacketRow]]


class FlowTable:
    """Takes the packets of a capture block by block; finished flows gather in `finished` until they are taken.

    Within a block packets are processed flow by flow, so that a flow is at hand for all its packets there. What one
    flow does to others is put in the order of the capture afterwards: which number a flow gets, and when it ends.

    `inner_packets(row, flow, depth)` gives the packets that a tunnel datagram carries.
    """

    def __init__(self, heads: HeadsKind, counters: ReadCounters, inner_packets: InnerPackets) -> None:
        self.finished: list[Flow] = []
        self._heads = heads
        self._head_room = 0 if heads == "none" else HEADS_TOKEN_BUDGET
        self._unread = _UNREAD[heads]
        self._counters = counters
        self._inner_packets = inner_packets
        self._flows: dict[bytes, LiveFlow] = {}
        self._now_us = 0
        # Of a block: the times of all its packets; and when flows are looked at: by packets of flows, and at the end.
        self._clock_us = self._looks_us = array("q")
        self._started: list[LiveFlow] = []
        self._ended: list[LiveFlow] = []
        self._created = 0
        self._depth = 0
        self._holes = 0
        # (`queued_us` of a flow, its number, its key); entries of flows that ended or were queued again are dropped
        # when met.
        self._due: list[tuple[int, int, bytes]] = [(_NEVER_US, 0, b"")]

    def __len__(self) -> int:
        return len(self._flows)

    def take(self) -> list[Flow]:
        """The flows that ended since the last call, in the order of their ends."""
        finished, self.finished = self.finished, []
        return finished

    def finish(self) -> None:
        """The capture is over: every live flow ends, in the order of their starts."""
        for flow in sorted(self._flows.values(), key=lambda flow: flow.number):
            self.finished.append(flow.finish(self._heads))
        self._flows.clear()

    def process_block(self, packets: PacketColumns, time_us: Int64Array) -> None:
        """Adds a block's packets to their flows; `time_us` are the times of all its packets, also of those without row.

        Time passes with every packet, and never back.
        """
        self._clock_us = self._clock(time_us)
        self._looks_us = self._clock(packets.numbers["time_us"])
        self._looks_us.append(self._clock_us[-1])
        apart = self._processed_alone(packets)
        starts, ends = np.append(0, apart + 1), np.append(apart, len(packets))
        are_few = ends - starts < _FEW_PACKETS
        one_by_one = np.repeat(are_few, ends - starts + 1)[: len(packets)]
        one_by_one[apart] = True
        rows = packets.rows(np.flatnonzero(one_by_one))
        for start, alone, is_few in zip(starts.tolist(), ends.tolist(), are_few.tolist(), strict=True):
            in_order = rows if is_few else None
            while start < alone:
                end = min(alone, start + max(1, min(MAX_LIVE_FLOWS - len(self._flows), MAX_HOLES - self._holes)))
                if in_order is None and end - start < _FEW_PACKETS:
                    in_order = packets.rows(np.arange(start, alone))
                if in_order is None:
                    self._process(packets.by_flow(start, end, self._unread))
                else:
                    self._process(islice(in_order, end - start))
                self._settle(int(packets.numbers["time_us"][end - 1]))
                start = end
            if alone < len(packets):
                self._process_alone(next(rows))
        self._settle(self._clock_us[-1])

    def _clock(self, time_us: Int64Array) -> array[int]:
        """The times as they pass, never back."""
        clock_us = array("q")
        clock_us.frombytes(np.maximum.accumulate(np.maximum(time_us, self._now_us)).tobytes())
        return clock_us

    def _processed_alone(self, packets: PacketColumns) -> Int64Array:
        """Which packets are not processed flow by flow: those of tunnels, and those by which the clock steps back."""
        kind, time_us = packets.numbers["kind"], packets.numbers["time_us"]
        latest = np.maximum.accumulate(np.maximum(time_us, self._now_us))
        return np.flatnonzero((kind == UDP_TUNNEL) | (kind == CLOCK) | (time_us < latest))

    def _process_alone(self, row: PacketRow) -> None:
        """Processes a packet after all before it, and the packets in it if it is a tunnel's, which may be so again."""
        self._settle(row[0])
        self._process([row])
        self._number_started()
        self._finish_ended()
        flow = self._flows.get(row[1])
        if row[3] == UDP_TUNNEL and flow is not None and self._depth < MAX_TUNNEL_DEPTH:
            self._depth += 1
            for inner in self._inner_packets(PacketRow._make(row), flow, self._depth):
                self._process_alone(inner)
            self._depth -= 1

    def _process(self, rows: Iterable[PacketRow]) -> None:
        """Adds packets to their flows, of which each is in order, and a row without key is of the one before.

        One loop with everything that the packets of ordinary flows need, and longer than house style has it: a million
        packets pass here, and a call per packet would cost as much as the work itself.
        """
        flows, header_only = self._flows, self._heads == "header"
        flow: LiveFlow | None = None
        for row in rows:
            (
                time_us, next_key, side_index, kind, length, total, have, flags, seq, ack,
                data, offset, frame, head_start, head_end, frame_end, _, _,
            ) = row  # fmt: skip
            if next_key is not None:
                key = next_key
                flow = flows.get(key)
            if flow is not None and flow.look_us <= time_us and self._lapses(flow, time_us):
                flow = None
            if flow is None or (flags & 2 and self._is_another(flow, row)):
                if kind == CLOCK:
                    continue
                flow = self._start(key, row)
            side = flow.sides[side_index]
            if flow.head_room:
                head = frame[head_start : head_end if header_only else frame_end]
                room = flow.head_room - HEAD_TOKEN_COST
                size = len(head)
                if size > room:
                    head, size = head[:room], room
                gap_us = time_us - flow.previous_us
                flow.previous_us = time_us
                flow.gaps_us.append(gap_us if gap_us > 0 else 0)
                flow.head_sizes.append(size)
                flow.heads += head
                room -= size
                flow.head_room = room if room >= HEAD_TOKEN_COST else 0
            if length:
                side.payloads += 1
                if flow.room:
                    flow.room -= 1
                    flow.lengths.append(length if side_index == flow.orig else -length)
            if kind == TCP_BAD_HEADER:
                continue
            side.packets += 1
            side.ip_bytes += total
            if kind == TCP:
                if flow.steady and not flags & _CONTROL:  # type: ignore[attr-defined]
                    peer = flow.sides[1 - side_index]
                    place = (seq - side.start) & _SEQUENCE_MASK  # type: ignore[attr-defined]
                    reach = (ack - peer.start) & _SEQUENCE_MASK if flags & 16 else 0  # type: ignore[attr-defined]
                    if place == side.next and have >= length and reach <= peer.next:  # type: ignore[attr-defined]
                        flow.last_us = time_us
                        if length:
                            side.next = side.last = side.stored = place + length  # type: ignore[attr-defined]
                            if side.room:
                                side.content += data[offset : offset + min(length, side.room)]
                                side.room -= min(length, side.room)
                        if reach > peer.acked:  # type: ignore[attr-defined]
                            peer.acked = peer.trim = reach  # type: ignore[attr-defined]
                        continue
                self._process_tcp(flow, row)  # type: ignore[arg-type]
            elif kind == TCP_OFFLOADED:
                self._process_tcp(flow, row)  # type: ignore[arg-type]
            else:
                flow.last_us = time_us
                if kind & 0xFF == UDP:
                    if side.room and have:
                        side.content += data[offset : offset + min(length, have, side.room)]
                        side.room = max(0, side.room - min(length, have))
                    if flow.inspect:
                        inspect(flow, row)
                elif have < length:
                    _uncount(side, total, kind)

    def _settle(self, now_us: int) -> None:
        """All packets up to `now_us` have been processed: ends what has been silent, and finishes what has ended."""
        if now_us > self._now_us:
            self._now_us = now_us
        self._number_started()
        if self._due[0][0] <= self._now_us:
            self._expire(self._now_us)
        self._finish_ended()

    def _number_started(self) -> None:
        """Flows that began get their numbers, in the order of the capture."""
        self._started.sort(key=_NUMBER)
        for number, flow in enumerate(self._started, self._created + 1):
            flow.number = number
            if flow.queued_us != _OVER:
                self._queue(flow)
        self._created += len(self._started)
        self._started.clear()

    def _finish_ended(self) -> None:
        """Flows that ended become records, in the order of their ends."""
        self._ended.sort(key=_END)
        self.finished += [flow.finish(self._heads) for flow in self._ended]
        self._ended.clear()

    def _process_tcp(self, flow: TcpFlow, row: PacketRow) -> None:
        tcp.process(flow, row)
        first, second = flow.sides
        if flow.held or first.holes or second.holes:
            self._count_holes(flow)
        if flow.due_changed:
            flow.due_changed = False
            self._look_by(flow, flow.due_us(row[0]))

    def _count_holes(self, flow: TcpFlow) -> None:
        first, second = flow.sides
        before, flow.held = flow.held, len(first.holes) + len(second.holes)
        self._holes += flow.held - before
        if flow.held != before and self._holes > MAX_HOLES:
            self._counters.skipped["segments out of order given up for lack of room"] += flow.held
            self._forget_holes(flow)

    def _forget_holes(self, flow: TcpFlow) -> None:
        flow.forget_holes()
        self._holes -= flow.held
        flow.held = 0

    def _is_another(self, flow: LiveFlow, row: PacketRow) -> bool:
        """Whether a SYN ends `flow`, which it meets at its endpoints, to begin the next one."""
        if (
            not isinstance(flow, TcpFlow)
            or row[6] == NO_TCP_HEADER
            or not tcp.starts_another_flow(flow, row[7], row[8])
        ):
            return False
        flow.look_us, flow.replaced_at = max(row[0], self._now_us), row[17]
        self._end(flow)
        return True

    def _start(self, key: bytes, row: PacketRow) -> LiveFlow:
        time_us, _, side, kind, _, _, _, flags, _, _, _, _, _, _, _, _, link, place = row
        now_us = max(time_us, self._now_us)
        if len(self._flows) >= MAX_LIVE_FLOWS:
            self._make_room(now_us)
        due_us = time_us + DATAGRAM_TIMEOUT_US
        flow: LiveFlow
        if kind & 0xFF == TCP:
            flow = TcpFlow(
                key, place, time_us, time_us, time_us, side, DATAGRAM_TIMEOUT_US, self._head_room,
                (TcpSide(), TcpSide()), array("i"), array("Q"), array("H"), link, due_us, due_us,
                check_due_us=now_us + DEAD_US,
            )  # fmt: skip
            if flags & tcp.SYN or kind == TCP_BAD_HEADER:
                flow.look_us = time_us + tcp.ATTEMPT_DELAY_US
            if flags & (tcp.SYN | tcp.ACK) != tcp.SYN:
                if tcp_begins_reversed(flow, flags):
                    flow.flip()
                else:
                    flow.began_with_syn_ack = flags & (_CONTROL | tcp.ACK) == tcp.SYN | tcp.ACK
        else:
            flow = LiveFlow(
                key, place, time_us, time_us, time_us, side, DATAGRAM_TIMEOUT_US, self._head_room,
                (Side(), Side()), array("i"), array("Q"), array("H"), link, due_us, due_us,
            )  # fmt: skip
            if kind & 0xFF == UDP:
                orient_udp(flow, now_us)
                if flow.recheck_us:
                    flow.look_us = min(flow.look_us, flow.recheck_us)
        self._flows[key] = flow
        self._started.append(flow)
        return flow

    def _expire(self, now_us: int) -> None:
        """Ends the flows that have been silent for long enough."""
        due = self._due
        while due[0][0] <= now_us:
            queued_us, number, key = heappop(due)
            flow = self._flows.get(key)
            if flow is None or flow.number != number or flow.queued_us != queued_us:
                continue
            if not self._lapses(flow, now_us):
                self._queue(flow)

    def _lapses(self, flow: LiveFlow, now_us: int) -> bool:
        """Looks at a flow whenever it is to be looked at up to `now_us`; ends it where it has been silent for long
        enough."""
        while flow.look_us <= now_us:
            seen_us = _first_from(self._looks_us, flow.look_us, now_us)
            if seen_us >= flow.timer_us:
                flow.timer_us = flow.last_us + flow.timeout_us
            # Zeek notices the silence of DNS by the first packet of any kind.
            due_us = flow.due_us(_first_from(self._clock_us, flow.look_us, now_us) if flow.recheck_us else seen_us)
            if due_us <= seen_us and isinstance(flow, TcpFlow) and flow.extends_silence(seen_us):
                due_us = flow.due_us(seen_us)
            if due_us <= seen_us:
                self._end(flow)
                return True
            flow.look_us = heappushpop(cast("list[int]", flow.later_us), due_us) if flow.later_us else due_us
        return False

    def _make_room(self, now_us: int) -> None:
        """Ends the flow that is nearest to its end, if none ends by itself."""
        self._expire(now_us)
        due = self._due
        while len(self._flows) >= MAX_LIVE_FLOWS:
            queued_us, number, key = heappop(due)
            flow = self._flows.get(key)
            if flow is None or flow.number != number or flow.queued_us != queued_us:
                continue
            flow.look_us = max(queued_us, flow.due_us(now_us))
            if flow.look_us > queued_us and due[0][0] < flow.look_us:
                self._queue(flow)
                continue
            self._counters.skipped["flows ended early because too many were live"] += 1
            flow.look_us = now_us
            self._end(flow)

    def _look_by(self, flow: TcpFlow, due_us: int) -> None:
        """Has the flow looked at then, too."""
        flow.later_us = later_us = cast("list[int]", flow.later_us or [])
        heappush(later_us, max(due_us, flow.look_us))
        if due_us < flow.look_us:
            flow.look_us = due_us
            if due_us < flow.queued_us != _NOT_QUEUED:
                self._queue(flow)

    def _queue(self, flow: LiveFlow) -> None:
        flow.queued_us = flow.look_us
        heappush(self._due, (flow.look_us, flow.number, flow.key))
        if len(self._due) > 2 * MAX_LIVE_FLOWS + 4 * len(self._flows):
            self._due[:] = [(_NEVER_US, 0, b""), *((f.queued_us, f.number, f.key) for f in self._flows.values())]
            heapify(self._due)

    def _end(self, flow: LiveFlow) -> None:
        del self._flows[flow.key]
        flow.queued_us = _OVER
        if isinstance(flow, TcpFlow) and flow.held:
            self._forget_holes(flow)
        self._ended.append(flow)


def _first_from(times_us: array[int], least_us: int, otherwise_us: int) -> int:
    """The first of the times, in order, from `least_us` on."""
    place = bisect_left(times_us, least_us)
    return times_us[place] if place < len(times_us) else otherwise_us


def _uncount(side: Side, total: int, kind: int) -> None:
    """Zeek does not count an ICMP packet that the snap length cut."""
    if kind in (ICMP, ICMP6):
        side.packets -= 1
        side.ip_bytes -= total
