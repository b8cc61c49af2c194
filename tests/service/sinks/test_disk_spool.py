"""The spool: bounded, whole records only, over restarts, in the order that the queue has."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from tapline.service.sinks.disk_spool import DiskSpool
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import OutputError
from tests.service.sinks.records import numbered, numbers

KINDS = ["flows", "traces", "alerts"]


@pytest.fixture
def opened():
    """Opens spools, which are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_spool(folder, size=1 << 20):
            spool = DiskSpool(folder, size)
            stack.callback(spool.close)
            return spool

        yield open_spool


def drained(spool, batch=7):
    """All lines in the order in which they are sent."""
    lines = []
    while records := spool.first(batch, 1 << 20):
        lines += [record.line for record in records]
        spool.sent(records)
    return lines


def large(kind, number, size=1000):
    return Record(kind, b'{"number":%d,"pad":"%b"}' % (number, b"x" * size))


def test_what_goes_in_comes_out_alerts_first(opened, tmp_path):
    spool = opened(tmp_path / "s", 1 << 20)
    spool.append([numbered(KINDS[number % 3], number) for number in range(60)])
    spool.append([numbered("flows", 60)])
    assert spool.records == 61
    expected = [*range(2, 60, 3), *range(1, 60, 3), *range(0, 61, 3)]
    assert numbers(drained(spool)) == expected
    assert (spool.records, spool.used_bytes) == (0, 0)
    assert {path.suffix for path in spool.folder.iterdir()} <= {"", ".sent"}


def test_a_restart_goes_on_where_the_last_run_was(opened, tmp_path):
    spool = opened(tmp_path, 1 << 20)
    spool.append([numbered("flows", number) for number in range(10)])
    spool.sent(spool.first(4, 1 << 20))
    spool.close()
    again = opened(tmp_path, 1 << 20)
    assert again.records == 6
    again.append([numbered("flows", 10)])
    assert numbers(drained(again)) == list(range(4, 11))
    again.close()
    assert opened(tmp_path, 1 << 20).records == 0


def test_flows_make_room_for_traces_and_both_for_alerts_the_oldest_first(opened, tmp_path):
    spool = opened(tmp_path, 64 << 10)
    dropped = spool.append([large("flows", number) for number in range(50)])
    assert not dropped
    dropped = spool.append([large("traces", number) for number in range(50)])
    assert set(dropped) == {"flows"}
    kept = 50 - dropped["flows"]
    assert spool.append([large("alerts", 0)])["traces"] == 0
    more = spool.append([large("alerts", number) for number in range(1, 60)])
    assert more["flows"] <= kept
    assert more["traces"] > 0
    assert more["alerts"] == 0
    found = {kind: [] for kind in KINDS}
    while records := spool.first(1, 1 << 20):
        found[records[0].kind] += numbers([records[0].line])
        spool.sent(records)
    assert found["alerts"] == list(range(60))
    assert found["flows"] == []
    assert found["traces"] == list(range(more["traces"], 50))  # the oldest went


def test_what_ranks_lowest_is_not_taken_where_all_else_ranks_higher(opened, tmp_path):
    spool = opened(tmp_path, 64 << 10)
    spool.append([large("alerts", number) for number in range(60)])
    assert spool.append([large("flows", number) for number in range(10)])["flows"] > 0
    assert spool.used_bytes <= 64 << 10
    assert numbers(drained(spool))[:60] == list(range(60))


def test_the_bound_holds_on_the_disk(opened, tmp_path):
    spool = opened(tmp_path, 64 << 10)
    for number in range(500):
        spool.append([large(KINDS[number % 3], number, 700)])
        assert sum(path.stat().st_size for path in tmp_path.glob("*.ndjson")) <= 64 << 10


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_tail_costs_itself(opened, tmp_path, cut):
    spool = opened(tmp_path, 1 << 20)
    spool.append([numbered("alerts", number) for number in range(5)])
    spool.close()
    (path,) = tmp_path.glob("alerts-*")
    os.truncate(path, path.stat().st_size - cut)
    again = opened(tmp_path, 1 << 20)
    again.append([numbered("alerts", 9)])
    assert numbers(drained(again)) == [0, 1, 2, 3, 9]


@pytest.mark.parametrize(
    "text", [b"", b"x", b"7", b"999999 999999\n", b"1 99999999\n", b"\0" * 32, b"-1 -5\n", b"1 -5\n"]
)
def test_a_note_of_what_was_sent_that_makes_no_sense_costs_no_record(opened, tmp_path, text):
    spool = opened(tmp_path, 1 << 20)
    spool.append([numbered("flows", number) for number in range(5)])
    spool.close()
    (tmp_path / "flows.sent").write_bytes(text)
    assert numbers(drained(opened(tmp_path, 1 << 20))) == list(range(5))


def test_a_disk_without_room_keeps_whole_records_and_says_which_are_not_kept(opened, tmp_path):
    """In a process of its own, whose files may not be larger than 3,000 bytes."""
    code = f"""
import resource, signal
from pathlib import Path
from tapline.service.sinks.disk_spool import DiskSpool, SpoolError
from tests.service.sinks.records import numbered
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = DiskSpool(Path({str(tmp_path)!r}), 1 << 20)
spool.append([numbered("flows", number) for number in range(10)])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    spool.append([numbered("flows", number) for number in range(10, 200)])
except SpoolError as error:
    print(len(error.rest), spool.records, error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "190 10 file too large\n"
    assert numbers(drained(opened(tmp_path, 1 << 20))) == list(range(10))


def test_a_process_that_is_killed_leaves_what_it_had_written(opened, tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from tapline.service.sinks.disk_spool import DiskSpool
from tests.service.sinks.records import numbered
spool = DiskSpool(Path({str(tmp_path)!r}), 1 << 20)
spool.append([numbered("flows", number) for number in range(10)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    assert numbers(drained(opened(tmp_path, 1 << 20))) == list(range(10))


def test_one_service_at_a_time(opened, tmp_path):
    spool = opened(tmp_path, 1 << 20)
    with pytest.raises(OutputError, match="another service uses"):
        opened(tmp_path, 1 << 20)
    spool.close()
    opened(tmp_path, 1 << 20).close()


def test_a_folder_that_cannot_be_used_is_said(opened, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be used"):
        opened(tmp_path / "file" / "s", 1 << 20)
