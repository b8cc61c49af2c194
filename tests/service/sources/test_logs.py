"""Zeek's logs in the published layout: joined, bounded, and refused with one sentence when damaged."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from tapline.models.flow import MAX_PAYLOAD_LENGTHS
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.service.sources.logs import LogDirectory, LogError, is_log_directory
from tests.paths import DATA

LOGS = DATA / "protocols" / "logs" / "tk.pcap"
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
        for flows in (LogDirectory(LOGS), CaptureReader(capture, ReadOptions(heads="none")))
    )
    assert len(logged) == 3
    assert logged == read


def test_plain_logs_runs_and_missing_rows(tmp_path):
    rows = (
        "1613939315.5\tA\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0.25\t17\n"
        "1613939316.000001\tB\t::1\t0\tff02::1\t0\tunknown_transport\t-\t2\n"
    )
    write(tmp_path, CONN + rows, PS + "A\t300\t1\t40:300,-9:1\n", RAW + "A\t00ff\t(empty)\n")
    first, second = LogDirectory(tmp_path)
    assert (first.start_us, first.duration_us, first.up) == (1_613_939_315_500_000, 250_000, 300)
    assert first.payload_lengths == [40] * MAX_PAYLOAD_LENGTHS
    assert (first.orig_bytes, first.resp_bytes) == (b"\x00\xff", b"")
    assert (second.start_us, second.proto, second.payload_lengths) == (1_613_939_316_000_001, "2", [])


def test_a_directory_without_connections_is_none(tmp_path):
    assert is_log_directory(LOGS)
    assert not is_log_directory(tmp_path)
    with pytest.raises(LogError, match=r"no conn\.log"):
        list(LogDirectory(tmp_path))


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ({"ps": "#fields\tuid\tup\n"}, "no field down"),
        ({"ps": PS + "A\t1\n"}, "line 2: 2 values for 4 fields"),
        ({"ps": PS + "A\t1\t0\t40x2\n"}, "line 2: expected length:count"),
        ({"ps": PS + "A\tone\t0\t40:1\n"}, "expected a count in up"),
        ({"raw": RAW + "A\tzz\t00\n"}, "expected hex"),
        ({"conn": CONN + "soon\tA\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0\t17\n"}, "expected seconds or an ISO time in ts"),
    ],
)
def test_damage_is_named(tmp_path, logs, message):
    with pytest.raises(LogError, match=message):
        list(LogDirectory(write(tmp_path, **logs)))


def test_a_cut_gzip_file_is_read_as_far_as_it_goes(tmp_path):
    rows = "".join(f"{n}.5\tuid{n:05}\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0.25\t17\n" for n in range(2_000))
    write(tmp_path, CONN, PS, RAW)
    (tmp_path / "conn.log").unlink()
    whole = gzip.compress((CONN + rows).encode())
    (tmp_path / "conn.log.gz").write_bytes(whole[: len(whole) // 2])
    logs = LogDirectory(tmp_path)
    flows = list(logs)
    assert 500 < len(flows) < 2_000
    assert [flow.uid for flow in flows] == [f"uid{n:05}" for n in range(len(flows))]
    assert "conn.log.gz: unreadable or damaged after line" in logs.warning
    assert logs.left_out == {"damaged log": 1}


def test_a_line_that_is_no_row_costs_that_line(tmp_path):
    good = "1.5\t{}\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0.25\t17\n"
    bad = "1.5\tB\tnobody\t5\t10.0.0.2\t53\tudp\t0.25\t17\n" + "half a line\n"
    write(tmp_path, CONN + good.format("A") + bad + good.format("C"), PS + "A\t1\t0\t40x2\nC\t1\t0\t7:1\n")
    logs = LogDirectory(tmp_path)
    assert [(flow.uid, flow.payload_lengths) for flow in logs] == [("A", []), ("C", [7])]
    assert logs.left_out == {"log line that cannot be read": 2, "log line that is no connection": 1}
    assert "ps.log line 2: expected length:count" in logs.warning


ROW = {"uid": "A", "id.orig_h": "10.0.0.1", "id.orig_p": 5, "id.resp_h": "10.0.0.2", "id.resp_p": 53, "proto": "UDP"}


@pytest.mark.parametrize(
    ("ts", "start_us"),
    [
        ("1700000000.123456", 1_700_000_000_123_456),
        ("1700000000123", 1_700_000_000_123_000),
        ('"2023-11-14T22:13:20.123456Z"', 1_700_000_000_123_456),
        ('"2023-11-14T23:13:20.5+0100"', 1_700_000_000_500_000),
        ('"2023-11-14T22:13:20"', 1_700_000_000_000_000),
        ("2.147483647e+09", 2_147_483_647_000_000),
        ("5e-06", 5),
    ],
)
def test_json_logs_with_every_kind_of_time(tmp_path, ts, start_us):
    fields = ", ".join(f'"{name}": {json.dumps(value)}' for name, value in ROW.items())
    ps = '{"uid": "A", "up": 1, "down": 1, "ps": "30:1,-58:1"}\n'
    write(tmp_path, f'{{"ts": {ts}, {fields}, "duration": 0.005}}\n', ps, '{"uid": "A", "fwd_raw": "0001"}\n')
    (flow,) = LogDirectory(tmp_path)
    assert (flow.start_us, flow.duration_us, flow.proto) == (start_us, 5_000, "udp")
    assert (flow.payload_lengths, flow.orig_bytes, flow.resp_bytes) == ([30, -58], b"\0\1", b"")


def test_json_with_a_nested_id(tmp_path):
    row = {"ts": 1.5, "uid": "A", "proto": "tcp", "id": {"orig_h": "::1", "orig_p": 1, "resp_h": "::2", "resp_p": 2}}
    (flow,) = LogDirectory(write(tmp_path, json.dumps(row) + "\n", "", ""))
    assert (flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p) == ("::1", 1, "::2", 2)


@pytest.mark.parametrize(
    "name",
    [
        "{}.00:00:00-01:00:00.log.gz",
        "{}.2026-11-25-00-00-00.log",
        "{}_20261125_00:00:00-01:00:00+0000.log.gz",
        "{}-20261125.log.zst",
        "{}.log.1",
        "{}.log-20261125.gz",
    ],
)
def test_rotated_names(tmp_path, name):
    rows = "2023-11-14T22:13:20.000000Z\tA\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0.25\t17\n"
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    for log, text in (("conn", CONN + rows), ("ps", PS + "A\t1\t0\t40:1\n"), ("raw", RAW + "A\t00ff\t\n")):
        (tmp_path / name.format(log)).write_bytes(pack(("\ufeff" + text).encode()))
    (tmp_path / "conn-summary.00:00:00-01:00:00.log").write_text("a page about connections")
    assert is_log_directory(tmp_path)
    (flow,) = LogDirectory(tmp_path)
    assert (flow.start_us, flow.payload_lengths, flow.orig_bytes) == (1_700_000_000_000_000, [40], b"\0\xff")


def test_all_rotated_files_are_read_and_one_there_twice_once(tmp_path):
    for hour, uid in (("00", "A"), ("01", "B")):
        row = f"1.5\t{uid}\t10.0.0.1\t5\t10.0.0.2\t53\tudp\t0.25\t17\n"
        (tmp_path / f"conn.{hour}:00:00.log").write_text(CONN + row)
    (tmp_path / "conn.00:00:00.log.gz").write_bytes(gzip.compress((tmp_path / "conn.00:00:00.log").read_bytes()))
    assert [flow.uid for flow in LogDirectory(tmp_path)] == ["A", "B"]


def test_other_separators_and_marks_of_unset_fields(tmp_path):
    head = (
        "#separator \\x2c\n#unset_field,NONE\n#fields,ts,uid,id.orig_h,id.orig_p,id.resp_h,id.resp_p,proto,duration\n"
    )
    write(tmp_path, head + "1.5,A,10.0.0.1,5,10.0.0.2,53,udp,NONE\n", "", "")
    (flow,) = LogDirectory(tmp_path)
    assert (flow.uid, flow.start_us, flow.duration_us) == ("A", 1_500_000, 0)
