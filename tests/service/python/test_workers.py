"""Several processes say what one says, in the same order; one that dies is told in one sentence, and none is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

import tapline
from tapline.service.engines.engine import EngineError
from tapline.service.python import input_run
from tests.paths import DATA
from tests.service.command.cli_runner import CODE
from tests.service.command.cli_runner import tapline as command

pytestmark = pytest.mark.whole

ANDROID = DATA / "captures" / "android.pcap"
SEVERAL = [ANDROID, DATA / "captures" / "ndpi" / "ftp-start-tls.pcap", DATA / "captures" / "telegram_videocall.pcapng"]


def everything(results):
    flows = [msgspec.json.encode(result.record) for result in results]
    return flows, [msgspec.json.encode(trace) for trace in results.traces], msgspec.json.encode(results.summary)


def children(process: int) -> list[int]:
    """The processes that a process has started and that are alive."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=60.0):
    """Wait for a condition that comes true, and give what it gives."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
    return found


@pytest.fixture
def small_batches(monkeypatch):
    """One capture makes many batches."""
    monkeypatch.setattr(input_run, "BATCH_FLOWS", 16)


def test_flows_of_one_capture_over_processes(small_batches):
    expected = everything(tapline.classify(ANDROID))
    results = tapline.classify(ANDROID, processes=2)
    assert len(expected[0]) > 4 * input_run.BATCH_FLOWS
    assert everything(results) == expected
    assert everything(results) == expected  # again


def test_captures_over_processes(tmp_path):
    bad = tmp_path / "bad.pcap"
    bad.write_bytes(b"no capture")
    paths = [SEVERAL[0], bad, *SEVERAL[1:]]
    with pytest.warns(UserWarning, match=r"bad\.pcap"):
        expected = everything(tapline.classify(paths, on_error="skip"))
    results = tapline.classify(paths, on_error="skip", processes=2)
    with pytest.warns(UserWarning, match=r"bad\.pcap"):
        assert everything(results) == expected
    assert [Path(entry.name).name for entry in results.summary.inputs] == [path.name for path in paths]
    assert results.summary.inputs[1].error
    with pytest.raises(tapline.CaptureError, match=r"bad\.pcap"):
        list(tapline.classify(paths, processes=2))
    assert not children(os.getpid())


@pytest.mark.parametrize("captures", [ANDROID, SEVERAL * 6], ids=["one", "several"])
def test_process_that_is_killed(captures, small_batches):
    results = iter(tapline.classify(captures, processes=2))
    next(results)
    for process in children(os.getpid()):
        os.kill(process, signal.SIGKILL)
    with pytest.raises(EngineError, match="a process that classifies was ended by signal 9 before its work was done"):
        list(results)
    assert not children(os.getpid())


@pytest.mark.parametrize("captures", [ANDROID, SEVERAL], ids=["one", "several"])
def test_iteration_that_is_given_up_ends_the_processes(captures, small_batches):
    results = iter(tapline.classify(captures, processes=2))
    next(results)
    assert len(children(os.getpid())) == 2
    results.close()
    assert not children(os.getpid())


def test_models_that_are_loaded_compute_here():
    with pytest.raises(ValueError, match="processes: a model that is loaded computes in this process"):
        tapline.classify(ANDROID, model=tapline.load("flow-protocols"), processes=2)


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (257, ValueError), (True, TypeError), ("2", TypeError)])
def test_number_of_processes(number, error):
    with pytest.raises(error, match="processes: expected a number from 1 to 256"):
        tapline.classify(ANDROID, processes=number)


def test_command_over_processes_writes_the_same():
    one, two = (
        command("classify", "--format", "json", "--processes", number, *SEVERAL, timeout=120) for number in (1, 2)
    )
    assert (one.returncode, one.stderr) == (two.returncode, two.stderr) == (0, "")
    assert one.stdout == two.stdout


@pytest.fixture
def classifying():
    """The command over two processes, at work on what is written into its standard input, and these."""
    started = subprocess.Popen(
        [sys.executable, "-c", CODE, "classify", "-", "--format", "ndjson", "--processes", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert started.stdin is not None
    started.stdin.write(ANDROID.read_bytes()[:50_000])
    started.stdin.flush()
    workers = wait_until(lambda: found if len(found := children(started.pid)) == 2 else [])
    yield started, workers
    started.kill()
    started.communicate()


def test_command_whose_process_is_killed(classifying):
    started, workers = classifying
    for each in workers:
        os.kill(each, signal.SIGKILL)
    _, said = started.communicate(ANDROID.read_bytes()[50_000:], timeout=60)
    assert started.returncode == 1
    assert " ".join(said.decode().split()) == (
        "a process that classifies was ended by signal 9 before its work was done: nothing more is classified"
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_command_that_is_ended_leaves_no_process(classifying, how):
    started, workers = classifying
    os.killpg(started.pid, how) if how == signal.SIGINT else started.kill()
    started.wait(60)
    assert started.returncode
    wait_until(lambda: not any(map(is_alive, workers)), 10)
