"""Zeek's logs in the published layout: joined, bounded, and refused with one sentence when damaged."""

import gzip
import shutil
from pathlib import Path

import pytest

from models.flow import MAX_PAYLOAD_LENGTHS
from service.sources.capture import CaptureReader, ReadOptions
from service.sources.logs import LogError, is_log_directory, read_log_directory

DATA = Path(__file__).parents[2] / "data"
LOGS = DATA / "zeek-logs" / "tk.pcap"
FEATURES = ("start_us", "orig_h", "orig_p", "resp_h", "resp_p", "proto", "up", "down", "payload_lengths",
            "orig_bytes", "resp_bytes", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes")  # fmt: skip

CONN = "#separator \\x09\n#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\tip_proto\n"
PS = "#fields\tuid\tup\tdown\tps\n"
RAW = "#fields\tuid\tfwd_raw\tbwd_raw\n"


def write(directory, conn=CONN, ps=PS, raw=RAW):
    for name, text in (("conn", conn), ("ps", ps), ("raw", raw)):
        (directory / f"{name}.log").write_text(text)
    return directory


def test_what_zeek_wrote_is_what_the_capture_reader_reads():
    capture = DATA / "protocols" / "pcap" / "tk.pcap"
    logged, read = (
        [[getattr(flow, name) for name in FEATURES] for flow in sorted(flows, key=lambda flow: flow.start_us)]
        for flows in (read_log_directory(LOGS), CaptureReader(capture, ReadOptions(heads="none")))
    )
    assert len(logged) == 3
    assert logged == read


def test_plain_logs_runs_and_missing_rows(tmp_path):
    rows = (
        "1613939315.5\tA\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0.25\t17\n"
        "1613939316.000001\tB\t::1\t0\tff02::1\t0\tunknown_transport\t-\t2\n"
    )
    write(tmp_path, CONN + rows, PS + "A\t300\t1\t40:300,-9:1\n", RAW + "A\t00ff\t(empty)\n")
    first, second = read_log_directory(tmp_path)
    assert (first.start_us, first.duration_us, first.up) == (1_613_939_315_500_000, 250_000, 300)
    assert first.payload_lengths == [40] * MAX_PAYLOAD_LENGTHS
    assert (first.orig_bytes, first.resp_bytes) == (b"\x00\xff", b"")
    assert (second.start_us, second.proto, second.payload_lengths) == (1_613_939_316_000_001, "2", [])


def test_a_directory_without_connections_is_none(tmp_path):
    assert is_log_directory(LOGS)
    assert not is_log_directory(tmp_path)
    with pytest.raises(LogError, match=r"no conn\.log"):
        list(read_log_directory(tmp_path))


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ({"ps": "#fields\tuid\tup\n"}, "no field down"),
        ({"ps": PS + "A\t1\n"}, "line 2: 2 values for 4 fields"),
        ({"ps": PS + "A\t1\t0\t40x2\n"}, "line 2: expected length:count"),
        ({"ps": PS + "A\tone\t0\t40:1\n"}, "expected a count in up"),
        ({"raw": RAW + "A\tzz\t00\n"}, "expected hex"),
        ({"conn": CONN + "soon\tA\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0\t17\n"}, "expected seconds in ts"),
    ],
)
def test_damage_is_named(tmp_path, logs, message):
    with pytest.raises(LogError, match=message):
        list(read_log_directory(write(tmp_path, **logs)))


def test_a_cut_gzip_file_is_named(tmp_path):
    for path in LOGS.iterdir():
        shutil.copy(path, tmp_path)
    whole = (LOGS / "ps.log.gz").read_bytes()
    (tmp_path / "ps.log.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogError, match=r"ps\.log\.gz: unreadable or damaged"):
        list(read_log_directory(tmp_path))
    assert gzip.decompress(whole)  # the original is sound
