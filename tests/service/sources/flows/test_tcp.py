"""TCP: content in order, direction, and when a flow ends, as Zeek 8.0 has them."""

from itertools import pairwise

import pytest

from tapline.service.sources.flows.sides import TcpSide
from tests.service.sources import builders as b
from tests.service.sources.builders import ACK, FIN, PSH, RST, SYN, Talk


def only(talk, **options):
    (flow,) = talk.flows(**options)
    return flow


def test_plain_conversation():
    talk = Talk().opened().up(PSH | ACK, 1001, 5001, b"GET /").down(ACK, 5001, 1006)
    talk.down(PSH | ACK, 5001, 1006, b"200 OK!").up(ACK, 1006, 5008)
    talk.up(FIN | ACK, 1006, 5008).down(FIN | ACK, 5008, 1007).up(ACK, 1007, 5009)
    flow = only(talk)
    assert b.ends(flow) == ("10.0.0.1", 4000, "10.0.0.2", 8999, "tcp")
    assert (flow.up, flow.down, flow.payload_lengths) == (1, 1, [5, -7])
    assert (flow.orig_bytes, flow.resp_bytes) == (b"GET /", b"200 OK!")
    assert (flow.orig_pkts, flow.resp_pkts) == (6, 4)
    assert (flow.orig_ip_bytes, flow.resp_ip_bytes) == (6 * 40 + 5, 4 * 40 + 7)
    assert flow.conn_state == "SF"
    assert flow.complete


def test_retransmission_counts_in_lengths_and_not_in_content():
    talk = Talk().opened().up(ACK, 1001, 5001, b"abcd").up(ACK, 1001, 5001, b"abcd").up(ACK, 1005, 5001, b"ef")
    flow = only(talk)
    assert flow.payload_lengths == [4, 4, 2]
    assert flow.orig_bytes == b"abcdef"


def test_first_copy_of_a_byte_wins():
    talk = Talk().opened().up(ACK, 1001, 5001, b"abcd").up(ACK, 1003, 5001, b"XXef").down(ACK, 5001, 1007)
    assert only(talk).orig_bytes == b"abcdef"


def test_out_of_order_segments_are_put_in_order():
    talk = Talk().opened().up(ACK, 1005, 5001, b"efgh").up(ACK, 1003, 5001, b"XdZ").up(ACK, 1001, 5001, b"abc")
    assert only(talk).orig_bytes == b"abXdefgh"  # 1003 and 1004 came second, after 1005 on and before 1001


def test_content_ends_at_a_gap():
    talk = Talk().opened().up(ACK, 1001, 5001, b"before").up(ACK, 1010, 5001, b"after").down(ACK, 5001, 1015)
    flow = only(talk)
    assert flow.payload_lengths == [6, 5]
    assert flow.orig_bytes == b"before"


def test_gap_before_any_content_only_delays_it():
    talk = Talk().up(ACK, 1001, 5001).down(ACK, 5001, 1003).up(ACK, 1003, 5001, b"later").down(ACK, 5001, 1008)
    assert only(talk).orig_bytes == b"later"


def test_acknowledged_gap_is_not_waited_for():
    talk = (
        Talk()
        .opened()
        .up(ACK, 1001, 5001, b"a")
        .down(ACK, 5001, 1005)
        .up(ACK, 1002, 5001, b"bcd")
        .up(ACK, 1005, 5001, b"e")
    )
    assert only(talk).orig_bytes == b"a"


def test_data_in_the_syn_is_content():
    talk = Talk().up(SYN, 1000, 0, b"early").down(SYN | ACK, 5000, 1006).up(ACK, 1006, 5001, b"late")
    flow = only(talk)
    assert flow.payload_lengths == [5, 4]
    assert flow.orig_bytes == b"earlylate"


def test_sequence_numbers_wrap():
    start = 2**32 - 3
    talk = Talk().opened(client=start).up(ACK, start + 1, 5001, b"abcd").up(ACK, 2, 5001, b"ef").down(ACK, 5001, 4)
    assert only(talk).orig_bytes == b"abcdef"


def test_content_is_cut_to_256_bytes():
    talk = Talk().opened().up(ACK, 1001, 5001, bytes(200)).up(ACK, 1201, 5001, b"x" * 200)
    assert only(talk).orig_bytes == bytes(200) + b"x" * 56


def test_lengths_are_cut_to_254_and_still_counted():
    talk = Talk().opened()
    for n in range(300):
        talk.up(ACK, 1001 + n, 5001, b"x")
    flow = only(talk)
    assert (len(flow.payload_lengths), flow.up) == (254, 300)


def test_data_without_acknowledgement_waits_for_16_kib_at_most():
    talk = Talk().up(SYN, 1000)
    for n in range(1, 20):
        talk.up(ACK, 1001 + 1000 * n, 1, bytes(1000))
    flow = only(talk.up(ACK, 1001, 1, b"x" * 1000))
    assert flow.orig_bytes == b""


def test_unanswered_syn_ends_after_five_seconds():
    assert [flow.orig_pkts for flow in Talk().up(SYN, 1000).wait(4.9).up(SYN, 1000).flows()] == [2]
    flows = Talk().up(SYN, 1000).wait(5.1).up(SYN, 1000).flows()
    assert [flow.orig_pkts for flow in flows] == [1, 1]
    assert [flow.conn_state for flow in flows] == ["S0", "S0"]


@pytest.mark.parametrize(("wait", "flows"), [(299, 1), (301, 2)])
def test_established_flow_ends_after_five_minutes(wait, flows):
    talk = Talk().opened().wait(wait).up(ACK, 1001, 5001, b"x")
    assert len(talk.flows()) == flows


@pytest.mark.parametrize(("wait", "flows"), [(3599, 1), (3601, 2)])
@pytest.mark.parametrize("port", [21, 22, 23, 513])
def test_interactive_flow_ends_after_an_hour(port, wait, flows):
    assert len(Talk(server_port=port).opened().wait(wait).up(ACK, 1001, 5001, b"x").flows()) == flows


def test_ssh_on_another_port_may_be_silent_for_an_hour():
    talk = Talk().opened().up(ACK, 1001, 5001, b"SSH-2.0-a").down(ACK, 5001, 1010, b"SSH-2.0-b").up(ACK, 1010, 5010)
    assert len(talk.wait(3000).up(ACK, 1010, 5010, b"x").flows()) == 1


def closed():
    return Talk().opened().up(FIN | ACK, 1001, 5001).down(FIN | ACK, 5001, 1002).up(ACK, 1002, 5002)


def test_closed_flow_lingers_for_five_seconds():
    assert len(closed().wait(4.9).up(ACK, 1002, 5002).flows()) == 1
    assert len(closed().wait(5.1).up(ACK, 1002, 5002).flows()) == 2


def test_syn_on_closed_flow_starts_another():
    flows = closed().wait(1).up(SYN, 9000).flows()
    assert [flow.conn_state for flow in flows] == ["SF", "S0"]


def test_syn_with_another_number_starts_another_flow():
    assert len(Talk().opened().up(SYN, 9000).flows()) == 2
    assert len(Talk().opened().up(SYN, 1000).flows()) == 1


def test_reset_ends_five_seconds_later():
    talk = Talk().opened().up(ACK, 1001, 5001, b"x").down(RST, 5001, 0)
    assert [flow.conn_state for flow in talk.wait(4.9).up(ACK, 1002, 5001).flows()] == ["RSTR"]
    talk = Talk().opened().up(ACK, 1001, 5001, b"x").down(RST, 5001, 0)
    assert len(talk.wait(5.1).up(ACK, 1002, 5001).flows()) == 2


def test_rejected_syn():
    assert [flow.conn_state for flow in Talk().up(SYN, 1000).down(RST | ACK, 0, 1001).flows()] == ["REJ"]


def test_flow_does_not_close_while_data_is_missing():
    talk = Talk().opened().up(ACK, 1001, 5001, b"abc").up(FIN | ACK, 1010, 5001).down(FIN | ACK, 5001, 1004)
    assert len(talk.wait(60).up(ACK, 1011, 5002).flows()) == 1


def test_conversation_that_begins_in_the_middle_starts_with_its_first_sender():
    flow = only(Talk().down(ACK, 5001, 1001, b"hello").up(ACK, 1001, 5006, b"hi"))
    assert b.ends(flow) == ("10.0.0.2", 8999, "10.0.0.1", 4000, "tcp")
    assert flow.payload_lengths == [5, -2]
    assert flow.orig_bytes == b"hello"


@pytest.mark.parametrize(
    ("client_port", "server_port", "turned"), [(4000, 80, True), (80, 443, False), (443, 80, True)]
)
def test_server_port_tells_who_is_asked_when_the_start_is_missing(client_port, server_port, turned):
    flow = only(Talk(client_port, server_port).down(ACK, 5001, 1001, b"x"))
    assert flow.resp_p == (server_port if turned else client_port)


def test_syn_ack_first_is_turned_by_the_next_ordinary_packet():
    talk = (
        Talk()
        .down(SYN | ACK, 5000, 1001)
        .up(ACK, 1001, 5001)
        .up(ACK, 1001, 5001, b"ask")
        .down(ACK, 5001, 1004, b"tell")
    )
    flow = only(talk)
    assert b.ends(flow) == ("10.0.0.1", 4000, "10.0.0.2", 8999, "tcp")
    assert flow.payload_lengths == [3, -4]
    assert (flow.orig_bytes, flow.resp_bytes) == (b"ask", b"tell")


def test_syn_ack_scan_is_not_turned():
    flow = only(Talk().down(SYN | ACK, 5000, 1001).up(RST, 1001, 0))
    assert flow.orig_h == "10.0.0.2"


def test_syn_captured_after_its_answer():
    flow = only(Talk().down(SYN | ACK, 5000, 1001).up(SYN, 1000).up(ACK, 1001, 5001).up(ACK, 1001, 5001, b"x"))
    assert b.ends(flow)[0] == "10.0.0.1"
    assert flow.orig_bytes == b"x"


def test_two_ports_of_one_host():
    segments = [b.tcp(4000, 8999, ACK, 1, 1, b"ask"), b.tcp(8999, 4000, ACK, 1, 4, b"tell")]
    (flow,) = b.flows_of([b.ethernet(b.ipv4(6, segment, b.CLIENT, b.CLIENT)) for segment in segments])
    assert flow.payload_lengths == [3, -4]


def test_packet_with_impossible_header_belongs_to_its_flow_and_says_nothing():
    broken = bytearray(b.tcp(4000, 8999, ACK, 1001, 5001, b"x"))
    broken[12] = 0xF0
    talk = Talk().opened()
    talk.packets.append(b.Packet(1, b.ethernet(b.ipv4(6, bytes(broken)))))
    flow = only(talk)
    assert (flow.orig_pkts, flow.payload_lengths) == (2, [])


def test_heads_in_header_mode_have_no_payload_and_no_padding():
    talk = Talk().opened().wait(0.5).up(PSH | ACK, 1001, 5001, b"data")
    padded = talk.packets[0].data + bytes(6)
    talk.packets[0] = b.Packet(0, padded)
    flow = only(talk, heads="header")
    assert [len(head.data) for head in flow.heads] == [54] * 4
    assert [head.gap_us for head in flow.heads] == [0, 1000, 1000, 501_000]
    assert flow.heads[3].data == talk.packets[3].data[:54]


def test_heads_fill_510_tokens():
    talk = Talk().opened()
    for n in range(20):
        talk.up(ACK, 1001 + n, 5001, b"x")
    for heads, size in (("header", 54), ("full", None)):
        flow = only(talk, heads=heads)
        sizes = [len(head.data) for head in flow.heads]
        assert sum(10 + size for size in sizes) == 510
        assert size is None or sizes == [54] * 7 + [52]


def test_heads_gap_is_never_negative():
    talk = Talk().opened()
    talk.packets.append(b.Packet(-5, talk.packets[2].data))
    assert [head.gap_us for head in only(talk, heads="header").heads] == [0, 1000, 1000, 0]


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ([SYN, RST], "RSTOS0"),
        ([SYN, SYN, RST], "RSTOS0"),
        ([SYN | RST], "OTH"),
        ([SYN, ACK, RST], "OTH"),
        ([SYN, FIN | RST], "OTH"),
        ([SYN, SYN | RST], "OTH"),
        ([SYN, RST, ACK], "RSTOS0"),
        ([RST], "OTH"),
    ],
)
def test_state_of_an_originator_that_resets_unanswered(flags, state):
    """conn.log's history tells: only a first SYN and data before the reset make RSTOS0."""
    talk = Talk(client_port=40000, server_port=80)
    for each in flags:
        talk.up(each, 1000 + bool(each & ACK), 1)
    assert only(talk).conn_state == state


def test_a_syn_answered_by_a_reset_is_rejected():
    assert only(Talk().up(SYN, 1000).down(RST | ACK, 0, 1001)).conn_state == "REJ"


def test_holes_in_a_stream_are_found_without_looking_at_each():
    side = TcpSide()
    for place in range(200):
        side.take(1 + 20 * (200 - place), 10, bytes(10), 0)
    side.take(1 + 20 * 100 - 5, 40, b"x" * 40, 0)
    starts = [hole.start for hole in side.holes]
    assert starts == sorted(starts)
    assert all(one.end <= other.start for one, other in pairwise(side.holes))
    assert sum(hole.end - hole.start for hole in side.holes) == 200 * 10 + 20
