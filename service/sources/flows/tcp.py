"""TCP as Zeek tracks it: the states of both ends, when a flow closes, and when a SYN starts another flow. The flow
table keeps the packets of an established flow that arrive in order to itself.

Behaviour, not code, follows Zeek 8.0 (src/packet_analysis/protocol/tcp, src/analyzer/protocol/tcp)."""

from __future__ import annotations

from tapline.service.sources.flows.live_flow import INTERACTIVE_TIMEOUT_US, TcpFlow
from tapline.service.sources.flows.sides import (
    CLOSED,
    ESTABLISHED,
    HANDSHAKE_STATES,
    INACTIVE,
    PARTIAL,
    RESET,
    STEADY_STATES,
    SYN_ACK_SENT,
    SYN_SENT,
    TcpSide,
)
from tapline.service.sources.packets.packet_rows import TCP_OFFLOADED, PacketRow

FIN = 1
SYN = 2
RST = 4
ACK = 16
_CONTROL = FIN | SYN | RST

SECOND_US = 1_000_000
CLOSE_DELAY_US = 5 * SECOND_US
ATTEMPT_DELAY_US = 5 * SECOND_US
SESSION_TIMER_US = 6 * SECOND_US
ESTABLISHED_TIMEOUT_US = 300 * SECOND_US
INTERACTIVE_PORTS = frozenset({21, 22, 23, 513})

_MASK = 0xFFFFFFFF
_OUTLANDISH_JUMP = 1 << 20


def starts_another_flow(flow: TcpFlow, flags: int, seq: int) -> bool:
    """Whether a SYN on the endpoints of `flow` begins a new flow instead of belonging to it."""
    orig, resp = flow.ends()
    expected = orig
    if flags & ACK:
        if orig.state != INACTIVE:
            return False
        expected = resp
    if orig.closed or resp.closed:
        return True
    if seq == expected.start & _MASK:
        return False
    reordered_handshake = (
        not flags & ACK and expected.state == SYN_ACK_SENT and resp.state == INACTIVE and seq == resp.start & _MASK
    )
    return not reordered_handshake


def process(flow: TcpFlow, row: PacketRow) -> None:
    """Takes one packet of `flow`: sequence numbers, state, acknowledged and new data, closing."""
    time_us, _, side, kind, length, _, have, flags, seq, ack, data, offset, _, _, _, _, _, _ = row
    end, peer = flow.sides[side], flow.sides[1 - side]
    from_orig = side == flow.orig
    if flags & SYN and not length and end.state == INACTIVE and _shake_hands(flow, end, peer, row, from_orig):
        return
    if not end.said_more and end.state != RESET:
        end.said_more = _says_more(end, peer, flags, length)
    if not (flow.saw_orig and flow.saw_resp):
        _note_partial(flow, flags, from_orig)
    segment = (0 if flags & RST else length) + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
    if flags & SYN or end.state == INACTIVE:
        _start_sequence(end, flags, seq, segment)
    position = end.relative(seq, end.last)
    if flow.began_with_syn_ack:
        _maybe_flip(flow, flags, length, position)
    if not (end.closed and peer.closed):
        flow.last_us = time_us
    if flags & FIN:
        end.fins += 1
        end.fin_end = position + segment
    acknowledged = _take_ack(peer, flags, ack) if flags & ACK else 0
    if flags & _CONTROL or position + segment > end.last:
        _advance(end, flags, position + segment)
    closing = False
    if flags & _CONTROL or end.state == INACTIVE:
        closing = _next_state(flow, end, peer, flags, length, from_orig)
    if acknowledged > peer.trim:
        peer.acknowledge(acknowledged, flow.partial)
    if (peer.fins or peer.state == RESET) and not peer.ended:
        _check_end_of_data(flow, peer, end)
    if from_orig:
        flow.saw_orig = True
    else:
        flow.saw_resp = True
    if length and not flags & RST and position >= 0 and (have >= length or (kind == TCP_OFFLOADED and have)):
        end.take(position + (1 if flags & SYN else 0), min(length, have), data, offset)
    if (end.fins or end.state == RESET) and not end.ended:
        _check_end_of_data(flow, end, peer)
    if closing:
        _close(flow, end, peer)
    flow.steady = not (end.fins or peer.fins) and _is_steady(flow, end, peer)


def _shake_hands(flow: TcpFlow, end: TcpSide, peer: TcpSide, row: PacketRow, from_orig: bool) -> bool:
    """The first two packets of nearly every flow, SYN and the SYN-ACK that answers it, the short way; False if the
    packet is something else. `process` comes to the same."""
    time_us, _, _, _, _, _, _, flags, seq, ack, _, _, _, _, _, _, _, _ = row
    control = flags & (_CONTROL | ACK)
    if control == SYN and from_orig and peer.state == INACTIVE:
        flow.attempt_due_us = time_us + ATTEMPT_DELAY_US
        flow.saw_orig = True
        end.state = SYN_SENT
    elif control == SYN | ACK and not from_orig and peer.state == SYN_SENT and (ack - peer.start) & _MASK == 1:
        end.state = peer.state = ESTABLISHED
        peer.previous = SYN_SENT
        peer.acked = 1
        interactive = flow.service_port() in INTERACTIVE_PORTS
        flow.set_timeout(INTERACTIVE_TIMEOUT_US if interactive else ESTABLISHED_TIMEOUT_US, time_us)
        flow.saw_resp = end.said_more = True
        flow.steady = not (peer.holes or peer.stored > 1)
    else:
        return False
    flow.last_us = time_us
    end.start, end.last = seq, 1
    return True


def _is_steady(flow: TcpFlow, end: TcpSide, peer: TcpSide) -> bool:
    return (
        end.state in STEADY_STATES
        and peer.state in STEADY_STATES
        and not (end.holes or peer.holes or end.skipping or peer.skipping)
        and not flow.began_with_syn_ack
        and end is not peer
    )


def _says_more(end: TcpSide, peer: TcpSide, flags: int, length: int) -> bool:
    """Whether a packet before the reset of `end` leads away from the history `S[^HAFGIQ]*R` of Zeek's conn.log."""
    control = flags & _CONTROL
    if end.state == INACTIVE and (control != SYN or peer.state != INACTIVE):
        return True
    if control == SYN:
        return bool(flags & ACK)
    return control not in (0, RST) or (not control and not length and bool(flags & ACK))


def _note_partial(flow: TcpFlow, flags: int, from_orig: bool) -> None:
    if from_orig:
        if not flow.saw_orig:
            flow.partial = not flags & SYN or bool(flags & ACK)
    elif not flow.saw_resp and not flow.partial:
        flow.partial = not flags & SYN


def _start_sequence(end: TcpSide, flags: int, seq: int, segment: int) -> None:
    """Sets where the sequence numbers of `end` start, as if a SYN had come first where none was seen."""
    state = end.state
    if state == INACTIVE:
        if flags & SYN:
            end.restart(seq, segment)
        else:
            end.restart((seq - 1) & _MASK, 1)
    elif not flags & SYN:
        return
    elif state in (SYN_SENT, SYN_ACK_SENT):
        if seq != end.start:
            end.restart(seq, segment)
    elif state in STEADY_STATES or (state == RESET and end.previous == INACTIVE):
        end.restart(seq, segment)


def _maybe_flip(flow: TcpFlow, flags: int, length: int, position: int) -> None:
    """A flow whose first packet is a SYN-ACK gets its ends exchanged by the first ordinary data or acknowledgement."""
    if not flags & (SYN | FIN | RST):
        if length or flags & ACK:
            flow.began_with_syn_ack = False
            flow.flip()
            flow.saw_orig = True
    elif flags & (SYN | ACK | FIN | RST) != SYN | ACK or position != 0:
        flow.began_with_syn_ack = False


def _take_ack(peer: TcpSide, flags: int, ack: int) -> int:
    """What of `peer`'s data the packet acknowledges, relative to its start; 0 if that makes no sense."""
    if peer.state == INACTIVE:
        peer.restart((ack - 1) & _MASK, 0)
        return 1
    position = peer.relative(ack, peer.acked)
    if position < 0:
        return 0
    if not flags & RST:
        delta = position - peer.acked
        if delta > 0 and not (ack == 0 and delta > _OUTLANDISH_JUMP):
            peer.acked = position
    return position


def _advance(end: TcpSide, flags: int, upper: int) -> None:
    """Moves the highest sequence number seen."""
    delta = upper - end.last
    if flags & (SYN | RST) and abs(delta) > _OUTLANDISH_JUMP:
        return
    if (flags & FIN and end.last == 1) or (delta > 0 and end.state != RESET):
        end.last = upper


def _next_state(flow: TcpFlow, end: TcpSide, peer: TcpSide, flags: int, length: int, from_orig: bool) -> bool:
    """Moves the state of `end` by the packet's flags; True if the packet closes it."""
    state = end.state
    if state == INACTIVE:
        return _leave_inactive(flow, end, peer, flags, length, from_orig)
    if state in (SYN_SENT, SYN_ACK_SENT):
        if flags & FIN:
            _set_state(flow, end, peer, CLOSED)
        if flags & RST:
            _set_state(flow, end, peer, RESET)
            flow.active = False
        return bool(flags & (FIN | RST))
    if state in STEADY_STATES:
        return _leave_steady(flow, end, peer, flags)
    if state == CLOSED and flags & RST and peer.state != CLOSED:
        _set_state(flow, end, peer, RESET)
        return not end.closed
    return False


def _leave_steady(flow: TcpFlow, end: TcpSide, peer: TcpSide, flags: int) -> bool:
    if flags & SYN and not flags & ACK and end.state == PARTIAL and peer.state == INACTIVE:
        _set_state(flow, end, peer, SYN_SENT)
    if flags & FIN and not flags & RST:
        _set_state(flow, end, peer, CLOSED)
        if peer.state == RESET and peer.previous == CLOSED:
            _set_state(flow, peer, end, CLOSED)
    if flags & RST:
        _set_state(flow, end, peer, RESET)
        if peer.state != RESET or peer.previous != ESTABLISHED:
            flow.active = False
    return bool(flags & (FIN | RST))


def _leave_inactive(flow: TcpFlow, end: TcpSide, peer: TcpSide, flags: int, length: int, from_orig: bool) -> bool:
    closing = False
    if flags & SYN:
        if from_orig:
            _set_state(flow, end, peer, SYN_ACK_SENT if flags & ACK else SYN_SENT)
            flow.attempt_due_us = flow.last_us + ATTEMPT_DELAY_US
        else:
            _answer_syn(flow, end, peer, flags)
    if flags & FIN:
        _set_state(flow, end, peer, CLOSED)
        closing = True
    if flags & RST:
        _set_state(flow, end, peer, RESET)
        closing = True
    if end.state == INACTIVE:
        orig = flow.sides[flow.orig]
        if not from_orig and length == 0 and orig.state == SYN_SENT:
            pass  # some hosts acknowledge a SYN before they answer it
        elif flags & ACK and peer.state == ESTABLISHED:
            _set_state(flow, end, peer, ESTABLISHED)
            flow.partial = False
            if from_orig:
                flow.saw_orig = True
            else:
                flow.saw_resp = True
        else:
            _set_state(flow, end, peer, PARTIAL)
    return closing


def _answer_syn(flow: TcpFlow, end: TcpSide, peer: TcpSide, flags: int) -> None:
    """A first SYN, with or without ACK, from the responder."""
    if not flags & ACK and peer.state == SYN_ACK_SENT:
        # The SYN was captured after the SYN-ACK that answers it.
        flow.partial = False
        flow.flip()
        flow.began_with_syn_ack = False
        _set_state(flow, peer, end, ESTABLISHED)
        flow.saw_orig = True
    if peer.state == SYN_SENT:
        _set_state(flow, peer, end, ESTABLISHED)
    _set_state(flow, end, peer, ESTABLISHED)
    if peer.state != PARTIAL and flow.service_port() in INTERACTIVE_PORTS:
        flow.set_timeout(INTERACTIVE_TIMEOUT_US, flow.last_us)


def _set_state(flow: TcpFlow, end: TcpSide, peer: TcpSide, state: int) -> None:
    if state == end.state:
        return
    if state not in HANDSHAKE_STATES and end.state in HANDSHAKE_STATES and peer.state in HANDSHAKE_STATES:
        flow.set_timeout(ESTABLISHED_TIMEOUT_US, flow.last_us)
    end.previous = end.state
    end.state = state


def _data_pending(end: TcpSide, peer: TcpSide) -> bool:
    """Whether data that `end` sent before it closed is still missing or not acknowledged by its peer."""
    if end.skipping or end.last < end.next:
        return False
    if end.next != end.last - 1 and end.next != end.last:
        return True
    return end.state != RESET and peer.has_unacknowledged_blocks()


def _check_end_of_data(flow: TcpFlow, end: TcpSide, peer: TcpSide) -> None:
    """For an end that has closed: notes that all its data has come, and closes the flow if that waited for it."""
    if _data_pending(end, peer):
        return
    end.ended = True
    if flow.close_deferred:
        _close(flow, end, peer)
        flow.close_deferred = False


def _close(flow: TcpFlow, end: TcpSide, peer: TcpSide) -> None:
    if _data_pending(end, peer):
        flow.close_deferred = True
        return
    flow.close_deferred = False
    if end.closed:
        return
    end.closed = True
    if end.state == RESET or peer.closed or peer.state == INACTIVE:
        flow.active = False
        flow.attempt_due_us = flow.check_due_us = 0
        flow.delete_due_us = flow.last_us + CLOSE_DELAY_US
    elif end.previous != INACTIVE:
        flow.check_due_us = flow.last_us + SESSION_TIMER_US
    flow.due_changed = True
