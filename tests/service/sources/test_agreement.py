"""Real captures against the logs that Zeek wrote of them: same flows, lengths, content, direction and counts."""

import numpy as np
import pytest

from benchmarks.agreement import compare
from tapline.models.flow import HEADS_TOKEN_BUDGET
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.service.sources.flows import flow_table
from tapline.service.sources.packets.columns import BlockDecoder
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.frames import FrameDecoder
from tapline.service.sources.packets.packet_rows import CLOCK, PacketBlock, ReadCounters
from tapline.service.sources.packets.pcap import PcapReader, is_pcap
from tapline.service.sources.packets.pcapng import PcapngReader
from tests.paths import DATA

CORPORA = ("iot-sentinel", "ndpi", "zeek-traces")
CAPTURES = sorted(
    str(path.relative_to(DATA / "captures"))
    for corpus in CORPORA
    for path in (DATA / "captures" / corpus).rglob("*")
    if path.is_file()
)
EXTENSIONS = "lengths: published script: IPv6 extension headers counted as payload"
ONE_HOST = "lengths: published script: one direction between two ports of one host"
pytestmark = pytest.mark.slow

TURNED = "content: published script: first answer logged before the flow was turned"
CUT = "lengths: published script: header counted as payload (packet cut by the snap length, or ICMP under 28 bytes)"
# What differs from the logs, always for what the published scripts do wrong.
EXCUSED = {
    "ndpi/fuzz-2021-06-07-c6c72a0a56.pcap": {CUT: 1},
    "ndpi/http2.pcapng": {ONE_HOST: 1},
    "ndpi/nats.pcap": {ONE_HOST: 2},
    "ndpi/openwire.pcapng": {ONE_HOST: 1},
    "ndpi/quic_0RTT.pcap": {ONE_HOST: 1},
    "ndpi/selfsigned.pcap": {ONE_HOST: 1},
    "zeek-traces/dns53.pcap": {TURNED: 1},
    "zeek-traces/icmp/icmp6-nd-options.pcap": {EXTENSIONS: 5},
    "zeek-traces/ip6_esp.trace": {EXTENSIONS: 1},
    "zeek-traces/ipv6_zero_len_ah.trace": {EXTENSIONS: 1},
    "zeek-traces/linux_dlt_sll2.pcap": {ONE_HOST: 2},
    "zeek-traces/ntp/misordered-ntp.pcap": {TURNED: 1},
    "zeek-traces/pppoe.trace": {EXTENSIONS: 1},
    "zeek-traces/tunnels/ayiya3.trace": {EXTENSIONS: 3},
}


@pytest.mark.parametrize("name", CAPTURES)
def test_flows_are_zeeks(name):
    tally = compare(DATA / "captures" / name, DATA / "zeek-logs" / name, listing=False)
    assert tally.connections > 0
    assert (tally.found, tally.extra, tally.not_read) == (tally.connections, 0, 0)
    assert dict(tally.causes) == EXCUSED.get(name, {})
    assert tally.identical + tally.excused == tally.compared


@pytest.mark.parametrize("most_live_flows", [flow_table.MAX_LIVE_FLOWS, 5])
@pytest.mark.parametrize("name", CAPTURES)
def test_flows_are_the_same_flow_by_flow_and_packet_by_packet(name, most_live_flows, monkeypatch):
    monkeypatch.setattr(flow_table, "MAX_LIVE_FLOWS", most_live_flows)
    flows = []
    for few_packets in (0, flow_table._FEW_PACKETS, 1 << 62):
        monkeypatch.setattr(flow_table, "_FEW_PACKETS", few_packets)
        flows.append(list(CaptureReader(DATA / "captures" / name, ReadOptions("full"))))
    assert flows[0] == flows[1] == flows[2] != []


def test_what_zeek_does_not_read_is_listed_as_that(tmp_path):
    (tmp_path / "conn.log").write_text("#fields\tuid\n")
    for name, cause in (("717-sll-vlan.pcap", "EtherType 8100 after Linux cooked"), ("nflog-be.pcap", "")):
        tally = compare(DATA / "odd" / name, tmp_path, listing=False)
        expected = {f"Zeek does not read: {cause}": 1} if cause else {"extra flow": 1}
        assert (tally.extra, tally.not_read, dict(tally.causes)) == (not cause, bool(cause), expected)


def blocks_of(path):
    source = ByteSource(path, None)
    try:
        head = source.read_some(4)
        yield from (PcapReader if is_pcap(head) else PcapngReader)(source, head)
    finally:
        source.close()


@pytest.mark.parametrize("name", CAPTURES)
def test_packets_are_decoded_alike_by_the_block_and_one_by_one(name):
    for block in blocks_of(DATA / "captures" / name):
        packets = BlockDecoder(FrameDecoder(ReadCounters()), ReadCounters()).packets(block)
        together = [comparable(row) for row in packets.rows(np.arange(len(packets))) if row[3] != CLOCK]
        alone = BlockDecoder(FrameDecoder(ReadCounters()), ReadCounters())
        one_by_one = [comparable(row) for packet in range(len(block.start)) for row in alone._one(block, packet)]
        assert together == one_by_one


def comparable(row):
    """A row without what the block decoder alone knows: that a datagram is no tunnel's, and its place."""
    time_us, key, side, kind, *rest, _ = row
    return time_us, key, side, kind & 0xFF if kind & 0xFF == 17 else kind, *rest


@pytest.mark.parametrize("heads", ["header", "full"])
@pytest.mark.parametrize("corpus", CORPORA)
def test_heads_are_within_their_budget_and_begin_packets(corpus, heads):
    for name in CAPTURES:
        if name.startswith(corpus):
            packets = {bytes(data) for block in blocks_of(DATA / "captures" / name) for data in slices(block)}
            for flow in CaptureReader(DATA / "captures" / name, ReadOptions(heads=heads)):
                assert 0 < sum(10 + len(head.data) for head in flow.heads) <= HEADS_TOKEN_BUDGET
                assert len(flow.heads) <= flow.orig_pkts + flow.resp_pkts + 1
                assert flow.heads[0].gap_us == 0
                assert all(any(packet.startswith(head.data) for packet in packets) for head in flow.heads[:2])


def slices(block: PacketBlock):
    for start, end in zip(block.start.tolist(), np.add(block.start, block.captured).tolist(), strict=True):
        yield block.data[start:end]
