"""The reader that runs Zeek: what it does without one, and that with one it gives the flows of the built-in reader."""

import gzip
import io
import json
import shutil
import stat

import pytest
import zstandard

from tapline.models.flow import Flow
from tapline.models.server_name import server_name
from tapline.service.sources.capture import CaptureError, CaptureReader, CaptureTooLargeError, ReadOptions
from tapline.service.sources.zeek_reader import ZeekReader
from tests.paths import DATA
from tests.service.sources import builders as b
from tests.zeek.clusters import has_plugin, zeek_version

CAPTURES = DATA / "captures"
SAME = [
    "iot-sentinel/Aria/Setup-A-1-STA.pcap",
    "ndpi/ftp-start-tls.pcap",
    "ndpi/http2.pcapng",
    "zeek-traces/ipv6-fragmented-dns.trace",
    "zeek-traces/linux_dlt_sll2.pcap",
    "zeek-traces/tunnels/Teredo.pcap",
    "zeek-traces/tunnels/vxlan-encapsulated-http.pcap",
]
FRAME = b.ethernet(b.ipv4(17, b.udp(4000, 7000, b"payload")))


def comparable(flows):
    """Flows in one order, with the names of their servers, without what only Zeek has: identifiers and services."""
    fields = [name for name in Flow.__struct_fields__ if name not in {"uid", "service", "server_name"}]
    return sorted([*(getattr(flow, name) for name in fields), server_name(flow)] for flow in flows)


def test_without_zeek_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CaptureError, match="no `zeek` on PATH"):
        ZeekReader(io.BytesIO(b""))


@pytest.fixture
def fake_zeek(tmp_path, monkeypatch):
    """Puts a shell script in Zeek's place."""

    def install(script):
        path = tmp_path / "zeek"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_zeek_that_hangs_is_killed(fake_zeek):
    fake_zeek("exec sleep 60")
    with pytest.raises(CaptureError, match=r"Zeek took longer than 0\.2 seconds"):
        list(ZeekReader(io.BytesIO(b.pcap([b.Packet(0, FRAME)])), timeout_seconds=0.2))


def test_zeek_that_fails(fake_zeek):
    fake_zeek("echo secret traffic >&2; exit 1")
    with pytest.raises(CaptureError, match="Zeek failed on the capture; try the built-in reader") as error:
        list(ZeekReader(io.BytesIO(b.pcap([b.Packet(0, FRAME)]))))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("line", ["{}", "not json", '{"version":2}', "{" + "x" * 100_000])
def test_log_of_another_release(fake_zeek, line):
    fake_zeek(f"cat > tapline_flow.log <<'END'\n{line}\nEND")
    with pytest.raises(CaptureError, match="install the tapline package of the same release"):
        list(ZeekReader(io.BytesIO(b.pcap([b.Packet(0, FRAME)]))))


def test_no_log_means_no_flows(fake_zeek):
    fake_zeek("exit 0")
    assert list(ZeekReader(io.BytesIO(b.pcap([b.Packet(0, FRAME)])))) == []


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "is empty"), (b"GET / HTTP/1.1", "expected a pcap or pcapng file")]
)
def test_what_is_no_capture_is_refused_as_by_the_built_in_reader(fake_zeek, data, message):
    fake_zeek("exit 0")
    with pytest.raises(CaptureError, match=message):
        list(ZeekReader(io.BytesIO(data)))


def test_limit_counts_decompressed_bytes(fake_zeek):
    fake_zeek("exit 0")
    data = gzip.compress(b.pcap([b.Packet(n, FRAME) for n in range(5_000)]))
    with pytest.raises(CaptureTooLargeError):
        list(ZeekReader(io.BytesIO(data), ReadOptions(max_bytes=10_000)))


def test_several_link_types_are_for_the_built_in_reader(fake_zeek):
    fake_zeek("exit 0")
    data = b.section() + b.interface(1) + b.interface(101) + b.enhanced(b.Packet(0, FRAME), 0)
    data += b.enhanced(b.Packet(1, FRAME[14:]), 1)
    with pytest.raises(CaptureError, match="several link types"):
        list(ZeekReader(io.BytesIO(data)))


def test_an_interface_that_cannot_be_read_is_left_out(fake_zeek, tmp_path):
    fake_zeek(f'cp "$2" {tmp_path}/given.pcap 2>/dev/null; exit 0')
    data = b.section() + b.interface(1) + b.interface(220)
    data += b.enhanced(b.Packet(0, bytes(64)), 1) + b.enhanced(b.Packet(1, FRAME), 0)
    reader = ZeekReader(io.BytesIO(data))
    assert list(reader) == []
    assert (tmp_path / "given.pcap").read_bytes() == b.pcap([b.Packet(1, FRAME)])
    assert (reader.packets, reader.skipped) == (2, {"link type 220, which is not supported": 1})


def test_what_zeek_leaves_out_is_said(fake_zeek, tmp_path):
    fake_zeek("exit 0")
    tagged = b.ethernet(b"\0\1\x88\xa8\0\2\x08\0" + FRAME[14:], 0x8100)
    path = tmp_path / "tagged.pcap"
    path.write_bytes(b.pcap([b.Packet(0, tagged), b.Packet(1, FRAME), b.Packet(2, b.ethernet(bytes(46), 0x88CC))]))
    for source in (path, io.BytesIO(path.read_bytes())):
        reader = ZeekReader(source)
        assert list(reader) == []
        assert reader.packets == 3
        assert reader.skipped == {"not IP": 1, "not read by Zeek: EtherType 88A8 after a VLAN tag": 1}


GOOD_LINE = {
    "version": 1, "sensor": "", "seq": 1, "final": True, "uid": "C1", "start_us": 1, "duration_us": 0,
    "orig_h": "10.0.0.1", "orig_p": 1, "resp_h": "10.0.0.2", "resp_p": 2, "proto": "udp", "service": "",
    "conn_state": "S0", "orig_pkts": 1, "resp_pkts": 0, "orig_ip_bytes": 70_028, "resp_ip_bytes": 0, "up": 1,
    "down": 0, "payload_lengths": "70000", "orig_bytes": "", "resp_bytes": "", "link_type": 0, "heads_kind": "none",
    "heads": "",
}  # fmt: skip


def test_a_line_of_zeeks_log_that_is_no_flow_costs_that_line(fake_zeek):
    line = json.dumps(GOOD_LINE)
    fake_zeek(f"printf '%s\\n' '{line}' 'half a li' > tapline_flow.log")
    reader = ZeekReader(io.BytesIO(b.pcap([b.Packet(0, FRAME)])))
    (flow,) = reader
    assert flow.payload_lengths == [70_000]
    assert reader.skipped == {"lines of Zeek's log that are no flow": 1}
    assert reader.warning == "1 lines of Zeek's log are no flows"


def test_zeeks_own_name_comes_with_the_flow(fake_zeek):
    lines = [GOOD_LINE | change for change in ({"server_name": "quic.example"}, {}, {"server_name": "s" * 256})]
    fake_zeek("cat > tapline_flow.log <<'END'\n" + "\n".join(map(json.dumps, lines)) + "\nEND")
    reader = ZeekReader(io.BytesIO(b.pcap([b.Packet(0, FRAME)])))
    assert [flow.server_name for flow in reader] == ["quic.example", ""]
    assert reader.skipped == {"lines of Zeek's log that are no flow": 1}


needs_zeek = pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")


@pytest.mark.zeek
@needs_zeek
@pytest.mark.parametrize("heads", ["none", "header", "full"])
@pytest.mark.parametrize("name", SAME)
def test_both_readers_give_the_same_flows(name, heads):
    options = ReadOptions(heads=heads)
    flows = list(ZeekReader(CAPTURES / name, options))
    assert flows
    expected = list(CaptureReader(CAPTURES / name, options))
    # Since 8.2 scripts know no link type but Ethernet's there; the plugin knows all.
    if name.endswith("pcapng") and zeek_version() >= (8, 2) and not has_plugin():
        for flow in expected:
            flow.link_type = 0
    assert comparable(flows) == comparable(expected)


@pytest.mark.zeek
@needs_zeek
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bytes])
def test_streams_and_cut_captures_are_rewritten(pack):
    whole = (CAPTURES / SAME[-1]).read_bytes()
    reader, builtin = ZeekReader(io.BytesIO(pack(whole[:-5]))), CaptureReader(io.BytesIO(whole[:-5]))
    assert comparable(reader) == comparable(builtin)
    assert reader.warning is not None
    assert "what came before was read" in reader.warning


@pytest.mark.zeek
@needs_zeek
def test_cut_file_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "cut.pcap"
    path.write_bytes((CAPTURES / SAME[-1]).read_bytes()[:-5])
    reader, builtin = ZeekReader(path), CaptureReader(path)
    assert comparable(reader) == comparable(builtin)
    assert reader.warning is not None
    assert reader.bytes_read == reader.bytes_total == path.stat().st_size
    assert reader.packets == builtin.packets == 11


SYN, ACK, PUSH_ACK = 0x02, 0x10, 0x18
REQUESTS = {
    b"GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n": "a.example",
    b"GET / HTTP/1.1\r\nHost: [2001:DB8::7]:81\r\n\r\n": "2001:DB8::7",
    b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n": "::1",
    b"GET / HTTP/1.1\r\nHost: 192.0.2.7\r\n\r\n": "192.0.2.7",
    b"GET / HTTP/1.1\r\nHost: first.example\r\n\r\nGET / HTTP/1.1\r\nHost: second.example\r\n\r\n": "first.example",
    b"POST / HTTP/1.1\r\nHost: unfinished.example\r\nContent-Length: 9\r\n\r\n": "unfinished.example",
    b"GET / HTTP/1.1\r\nHost: \x1b]0;owned\x07\r\n\r\n": "",
    b"GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n": "",
    b"GET / HTTP/1.1\r\nHost: " + 300 * b"x" + b"\r\n\r\n": "",
    b"GET / HTTP/1.0\r\n\r\n": "",
}


@pytest.mark.zeek
@needs_zeek
def test_zeek_and_content_name_the_same_hosts():
    frames = []
    for port, request in enumerate(REQUESTS, 4000):
        for flags, seq, data in ((SYN, 0, b""), (ACK, 1, b""), (PUSH_ACK, 1, request)):
            frames.append(b.ethernet(b.ipv4(6, b.tcp(port, 80, flags, seq, 1 if flags != SYN else 0, data))))
            if flags == SYN:
                answer = b.tcp(80, port, SYN | ACK, 0, 1)
                frames.append(b.ethernet(b.ipv4(6, answer, source=b.SERVER, target=b.CLIENT)))
    data = b.pcap([b.Packet(number, frame) for number, frame in enumerate(frames)])
    given = {flow.orig_p: flow.server_name for flow in ZeekReader(io.BytesIO(data))}
    read = {flow.orig_p: server_name(flow) for flow in CaptureReader(io.BytesIO(data))}
    assert given == read == dict(enumerate(REQUESTS.values(), 4000))
