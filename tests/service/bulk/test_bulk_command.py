"""`tapline bulk` on a Ray of its own and on a cluster of two nodes: a worker that is killed, a run that is interrupted
and goes on, captures that are bad."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pq = pytest.importorskip("pyarrow.parquet")

from tests.service.bulk.bulk_process import UNDONE, bulk, cluster_of_two, ended, holders, interrupt  # noqa: E402

pytestmark = [pytest.mark.whole, pytest.mark.slow, pytest.mark.timeout(900)]

START_SECONDS = 240


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes."""
    with cluster_of_two() as address:
        yield address


def tables(out):
    """The flows that a reader finds, by the name of the capture."""
    found = {}
    for path in Path(out, "flows").iterdir():
        table = pq.read_table(path)
        found[Path(table["capture"][0].as_py()).name] = table.drop_columns("capture").unify_dictionaries()
    return found


def under_way(out):
    """The captures that workers are at."""
    accounts = {path.name: path.read_bytes() for path in Path(out, "done").glob("*.json")}
    return [name[: name.rindex("-")] for name, text in accounts.items() if json.loads(text)["error"] == UNDONE]


def in_the_middle(process, out, name):
    """Wait until a worker is in the middle of a capture of this name, and none at another; its process."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if under_way(out) == [name]:
            working = list(holders(f"{out}/.parts/"))
            if len(working) == 1 and under_way(out) == [name]:
                return working[0]
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no worker began {name}: {process.communicate()[1]}")


def listened_on(process):
    """The addresses that a process listens on, none of one that has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    return set()


def test_a_killed_worker_costs_no_row_and_doubles_none(archive, expected, cluster, tmp_path):
    with bulk(archive, "--out", tmp_path, "--ray-address", cluster) as process:
        worker = in_the_middle(process, tmp_path, "large.pcap")
        os.kill(worker, signal.SIGKILL)
        status, said = ended(process)
    assert status == 1  # for what is bad
    assert "bad.pcap: expected a pcap or pcapng file" in said
    assert "3 of 4 captures done, 1 failed" in said
    assert tables(tmp_path) == expected
    tries = {
        path.name[: path.name.rindex("-")]: json.loads(path.read_bytes())["tries"]
        for path in (tmp_path / "done").iterdir()
    }
    assert tries == {"android.pcap": 1, "bad.pcap": 1, "large.pcap": 2, "telegram_videocall.pcapng": 1}
    errors = pq.read_table(tmp_path / "errors.parquet").to_pylist()
    assert [row["capture"] for row in errors] == [str(archive / "bad.pcap")]
    assert not (tmp_path / ".parts").exists()


def test_an_interrupted_run_goes_on(archive, expected, tmp_path):
    good = [archive / name for name in expected]
    with bulk(*good, "--out", f"file://{tmp_path}") as process:
        worker = in_the_middle(process, tmp_path, "large.pcap")
        os.kill(worker, signal.SIGSTOP)  # else it may be done while its family is looked at
        family = psutil.Process(process.pid).children(recursive=True)
        listening = {address for one in family for address in listened_on(one)}
        interrupt(process)
        os.kill(worker, signal.SIGCONT)
        status, said = ended(process)
    assert status == 130
    assert "interrupted: run it again to go on" in said
    assert set(tables(tmp_path)) < set(expected)
    assert len(family) > 5
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    with bulk(*good, "--out", tmp_path) as process:
        status, said = ended(process)
    assert (status, tables(tmp_path)) == (0, expected), said
    assert "3 of 3 captures done" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "flows").iterdir()}
    with bulk(archive, "--out", tmp_path, "--ports", "off") as process:
        status, said = ended(process)
    assert status == 2
    assert said == f"{tmp_path}: what is there was made otherwise (ports on, now off): give another --out\n"
    with bulk(*good, "--out", tmp_path) as process:  # nothing is left: no Ray is started
        status, said = ended(process)
    assert status == 0
    assert "3 of 3 captures done (3 of them before), 0 failed" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "flows").iterdir()} == before
