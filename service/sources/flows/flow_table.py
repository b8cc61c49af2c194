"""The table of live flows: packets in, finished flows out, with the lifetimes of Zeek 8.0 and a bound on live flows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

import numpy as np

from tapline.models.flow import HEADS_TOKEN_BUDGET, Flow, HeadsKind
from tapline.service.sources.flows import tcp
from tapline.service.sources.flows.live_flow import DEAD_US, DNS_RECHECK_US, LiveFlow, TcpFlow
from tapline.service.sources.flows.roles import (
    DNS,
    NTP,
    asks_too_much,
    inspector_of,
    is_dns_answer,
    is_dns_message,
    is_multicast,
    ntp_contradicts,
)
from tapline.service.sources.flows.sides import Side, TcpSide
from tapline.service.sources.packets.ip import MAX_TUNNEL_DEPTH
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
from tapline.service.sources.packets.ports import is_likely_server

MAX_LIVE_FLOWS = 32_768
"""Beyond it the flow that is nearest to its end is ended early, so that a scan cannot fill the memory."""

MAX_HOLES = 32_768
"""TCP segments that wait for what precedes them, in all flows together; beyond it a flow does without them."""

DATAGRAM_TIMEOUT_US = 60 * tcp.SECOND_US
_NEVER_US = 1 << 62
_CONTROL = tcp.FIN | tcp.SYN | tcp.RST
_SEQUENCE_MASK = 0xFFFFFFFF
_BROADCAST = b"\xff\xff\xff\xff"

InnerPackets = Callable[[PacketRow, LiveFlow, int], list[PacketRow]]


class FlowTable:
    """Takes packet rows in file order; finished flows gather in `finished` until they are taken.

    `inner_packets(row, flow, depth)` gives the packets that a tunnel datagram carries.
    """

    def __init__(self, heads: HeadsKind, counters: ReadCounters, inner_packets: InnerPackets) -> None:
        self.finished: list[Flow] = []
        self._heads = heads
        self._head_room = 0 if heads == "none" else HEADS_TOKEN_BUDGET
        self._counters = counters
        self._inner_packets = inner_packets
        self._flows: dict[bytes, LiveFlow] = {}
        self._now_us = 0
        self._clock_us: Int64Array = np.zeros(1, dtype=np.int64)
        self._created = 0
        self._depth = 0
        self._holes = 0
        # (earliest time the flow can end, its number, its key); entries of flows that ended are dropped when met.
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

    def process_block(self, rows: Iterable[PacketRow], time_us: Int64Array) -> None:
        """Adds a block's packets to their flows; `time_us` are the times of all its packets, also of those without row.

        Time passes with every packet, and never back.
        """
        self._clock_us = np.maximum.accumulate(np.maximum(time_us, self._now_us))
        self.process(rows)
        self._now_us = int(self._clock_us[-1])
        self._expire(self._now_us)

    def process(self, rows: Iterable[PacketRow]) -> None:
        """Adds packets to their flows.

        One loop with everything that the packets of ordinary flows need, and longer than house style has it: a million
        packets pass here, and a call per packet would cost as much as the work itself.
        """
        flows, due, header_only = self._flows, self._due, self._heads == "header"
        now_us = self._now_us
        for row in rows:
            (
                time_us, key, side_index, kind, length, total, have, flags, seq, ack,
                data, offset, frame, head_start, head_end, frame_end, _,
            ) = row  # fmt: skip
            if time_us > now_us:
                now_us = self._now_us = time_us
            if due[0][0] <= now_us:  # also when time stands still: a flow can be late from its start
                self._expire(now_us)
            flow = flows.get(key)
            if flow is None or (flags & 2 and self._is_another(flow, row)):
                if kind == CLOCK:
                    continue
                flow = self._start(row)
            side = flow.sides[side_index]
            if flow.head_room:
                flow.add_head(time_us, frame, head_start, head_end if header_only else frame_end)
            if length:
                side.payloads += 1
                if flow.room:
                    flow.room -= 1
                    flow.lengths.append(-length if side_index else length)
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
                        self._inspect(flow, row)
                    if kind == UDP_TUNNEL:
                        self._process_inner(flow, PacketRow._make(row))
                elif have < length:
                    _uncount(side, total, kind)

    def _process_inner(self, flow: LiveFlow, row: PacketRow) -> None:
        """Processes the packets inside a tunnel datagram, which may be tunnel datagrams again."""
        if self._depth >= MAX_TUNNEL_DEPTH:
            return
        rows = self._inner_packets(row, flow, self._depth + 1)
        if rows:
            self._depth += 1
            self.process(rows)
            self._depth -= 1

    def _process_tcp(self, flow: TcpFlow, row: PacketRow) -> None:
        first, second = flow.sides
        before = len(first.holes) + len(second.holes)
        tcp.process(flow, row)
        after = len(first.holes) + len(second.holes)
        if after != before:
            self._holes += after - before
            if self._holes > MAX_HOLES:
                self._holes -= flow.forget_holes()
                self._counters.skipped["segments out of order given up for lack of room"] += after
        if flow.due_changed:
            flow.due_changed = False
            self._push_due(flow)

    def _is_another(self, flow: LiveFlow, row: PacketRow) -> bool:
        """Whether a SYN ends `flow`, which it meets at its endpoints, to begin the next one."""
        if (
            not isinstance(flow, TcpFlow)
            or row[6] == NO_TCP_HEADER
            or not tcp.starts_another_flow(flow, row[7], row[8])
        ):
            return False
        self._end(flow)
        return True

    def _start(self, row: PacketRow) -> LiveFlow:
        time_us, key, side, kind, _, _, _, flags, _, _, _, _, _, _, _, _, link = row
        if len(self._flows) >= MAX_LIVE_FLOWS:
            self._evict()
        self._created += 1
        first_due_us = time_us + DATAGRAM_TIMEOUT_US
        flow: LiveFlow
        if kind & 0xFF == TCP:
            flow = self._start_tcp(row)
            if flags & tcp.SYN or kind == TCP_BAD_HEADER:
                first_due_us = time_us + tcp.ATTEMPT_DELAY_US
        else:
            flow = LiveFlow(
                key, self._created, time_us, time_us, time_us, side, DATAGRAM_TIMEOUT_US, self._head_room,
                (Side(), Side()), array("i"), link, first_due_us,
            )  # fmt: skip
            if kind & 0xFF == UDP:
                self._orient_udp(flow)
                if flow.recheck_us:
                    first_due_us = min(first_due_us, flow.recheck_us)
        self._flows[key] = flow
        heappush(self._due, (first_due_us, self._created, key))
        return flow

    def _start_tcp(self, row: PacketRow) -> TcpFlow:
        time_us, key, side, _, _, _, _, flags, _, _, _, _, _, _, _, _, link = row
        flow = TcpFlow(
            key, self._created, time_us, time_us, time_us, side, DATAGRAM_TIMEOUT_US, self._head_room,
            (TcpSide(), TcpSide()), array("i"), link, time_us + DATAGRAM_TIMEOUT_US,
            check_due_us=self._now_us + DEAD_US,
        )  # fmt: skip
        if flags & (tcp.SYN | tcp.ACK) == tcp.SYN:
            return flow
        if _tcp_begins_reversed(flow, flags):
            flow.flip()
        else:
            flow.began_with_syn_ack = flags & (_CONTROL | tcp.ACK) == tcp.SYN | tcp.ACK
        return flow

    def _orient_udp(self, flow: LiveFlow) -> None:
        """The first packet may come from the server; and who is asked by DNS or NTP, the messages say."""
        ports = flow.ports()
        source, target = ports[flow.orig], ports[1 - flow.orig]
        reversed_ports = is_likely_server(source, tcp=False) and not is_likely_server(target, tcp=False)
        if reversed_ports and flow.address(1 - flow.orig) != _BROADCAST:
            flow.flip()
            target = source
        flow.inspect = inspector_of(target)
        if flow.inspect == DNS:
            flow.recheck_us = self._now_us + DNS_RECHECK_US

    def _inspect(self, flow: LiveFlow, row: PacketRow) -> None:
        row = PacketRow._make(row)
        payload = row.data[row.offset : row.offset + min(row.have, row.length)]
        from_orig = row.side == flow.orig
        if flow.inspect == NTP:
            if ntp_contradicts(payload, from_orig):
                flow.inspect = 0
                _turn(flow, row)
            return
        if not is_dns_message(payload, flow.ports()):
            return
        flow.inspect = 0
        if from_orig and is_dns_answer(payload) and not is_multicast(flow.address(1 - flow.orig)):
            _turn(flow, row)
        if asks_too_much(payload):
            flow.recheck_us = 0

    def _expire(self, now_us: int) -> None:
        due = self._due
        while due[0][0] <= now_us:
            due_at_us, number, key = heappop(due)
            flow = self._flows.get(key)
            if flow is None or flow.number != number:
                continue
            if now_us >= flow.timer_us:
                flow.timer_us = flow.last_us + flow.timeout_us
            due_us = flow.due_us(self._seen_us(due_at_us) if flow.recheck_us else now_us)
            if due_us <= now_us and isinstance(flow, TcpFlow) and flow.extends_silence(now_us):
                due_us = flow.due_us(now_us)
            if due_us <= now_us:
                self._end(flow)
            else:
                heappush(due, (due_us, number, key))

    def _seen_us(self, due_us: int) -> int:
        """The time of the first packet at or after `due_us`: when Zeek would notice."""
        place = int(np.searchsorted(self._clock_us, due_us))
        return int(self._clock_us[place]) if place < len(self._clock_us) else self._now_us

    def _evict(self) -> None:
        """Ends the flow that is nearest to its end."""
        due = self._due
        while True:
            due_us, number, key = heappop(due)
            flow = self._flows.get(key)
            if flow is None or flow.number != number:
                continue
            true_due_us = flow.due_us(self._now_us)
            if true_due_us <= due_us or due[0][0] >= true_due_us:
                break
            heappush(due, (true_due_us, number, key))
        self._counters.skipped["flows ended early because too many were live"] += 1
        self._end(flow)

    def _push_due(self, flow: LiveFlow) -> None:
        heappush(self._due, (flow.due_us(self._now_us), flow.number, flow.key))
        if len(self._due) > 2 * MAX_LIVE_FLOWS + 4 * len(self._flows):
            live = [entry for entry in self._due if entry[2] == b"" or self._is_live(entry[2], entry[1])]
            live.sort()
            self._due[:] = live

    def _is_live(self, key: bytes, number: int) -> bool:
        flow = self._flows.get(key)
        return flow is not None and flow.number == number

    def _end(self, flow: LiveFlow) -> None:
        del self._flows[flow.key]
        if isinstance(flow, TcpFlow):
            self._holes -= flow.forget_holes()
        self.finished.append(flow.finish(self._heads))


def _turn(flow: LiveFlow, row: PacketRow) -> None:
    """Turns a flow for what a datagram says; as in conn.log, that datagram counts for the end that did not send it."""
    flow.flip()
    sender, other = flow.sides[row.side], flow.sides[1 - row.side]
    sender.packets -= 1
    sender.ip_bytes -= row.total
    other.packets += 1
    other.ip_bytes += row.total


def _uncount(side: Side, total: int, kind: int) -> None:
    """Zeek does not count an ICMP packet that the snap length cut."""
    if kind in (ICMP, ICMP6):
        side.packets -= 1
        side.ip_bytes -= total


def _tcp_begins_reversed(flow: LiveFlow, flags: int) -> bool:
    """Whether a first packet that is no SYN comes from the server: from a port where servers listen."""
    ports = flow.ports()
    source, target = ports[flow.orig], ports[1 - flow.orig]
    if not is_likely_server(source, tcp=True) or flow.address(1 - flow.orig) == _BROADCAST:
        return False
    if is_likely_server(target, tcp=True):
        return not flags & tcp.SYN and source < target
    return True
