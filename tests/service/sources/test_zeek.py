"""The reader that runs Zeek: what it does without one, and that with one it gives the flows of the built-in reader."""

import gzip
import io
import shutil
import stat
from pathlib import Path

import pytest
import zstandard

from models.flow import Flow
from service.sources.capture import CaptureError, CaptureReader, CaptureTooLargeError, ReadOptions
from service.sources.zeek import ZeekReader
from tests.service.sources import builders as b

CAPTURES = Path(__file__).parents[2] / "data" / "captures"
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
    """Flows in one order, without what only Zeek has: its identifiers and the names of services."""
    fields = [name for name in Flow.__struct_fields__ if name not in {"uid", "service"}]
    return sorted([getattr(flow, name) for name in fields] for flow in flows)


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
    with pytest.raises(CaptureError, match="several link types"):
        list(ZeekReader(io.BytesIO(data)))


needs_zeek = pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")


@pytest.mark.zeek
@needs_zeek
@pytest.mark.parametrize("heads", ["none", "header", "full"])
@pytest.mark.parametrize("name", SAME)
def test_both_readers_give_the_same_flows(name, heads):
    options = ReadOptions(heads=heads)
    flows = list(ZeekReader(CAPTURES / name, options))
    assert flows
    assert comparable(flows) == comparable(CaptureReader(CAPTURES / name, options))


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
    reader = ZeekReader(path)
    assert comparable(reader) == comparable(CaptureReader(path))
    assert reader.warning is not None
    assert reader.bytes_read == reader.bytes_total == path.stat().st_size
    assert reader.packets == 22
