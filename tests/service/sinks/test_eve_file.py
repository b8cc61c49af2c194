"""The EVE file: rotated by us and by others, reopened, on a full disk, after a kill."""

import fcntl
import gzip
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import zstandard

from tapline.service.sinks.eve_file import EveFile
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import OutputError, parse_output
from tapline.service.sinks.sender import AwayError
from tests.service.sinks.records import numbered, numbers, outputs_of, pending, until


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "eve.json"


@pytest.fixture
def opened(path):
    """Makes senders to the file, which are closed at the end."""
    made = []

    def make(parameters=""):
        made.append(EveFile(parse_output(f"eve:{path}{parameters}")))
        return made[-1]

    yield make
    for eve in made:
        eve.close()


def large(number):
    return Record("flows", b'{"number":%d,"pad":"%b"}' % (number, b"x" * 300_000))


def lines(path):
    return path.read_bytes().splitlines()


def aside(path):
    return sorted(each for each in path.parent.iterdir() if each != path)


def test_lines_are_appended(opened, path):
    opened().send([numbered("flows", number) for number in range(3)])
    opened_again = path.read_bytes()
    assert opened_again.endswith(b"}\n")
    assert numbers(lines(path)) == [0, 1, 2]


@pytest.fixture
def umask_of_a_unit():
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask_of_a_unit")
@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_a_group_may_read_all_of_it_whatever_the_umask(opened, path, compress):
    eve = opened(f"?rotate_mb=1&compress={compress}")
    for number in range(8):
        eve.send([large(number)])
    eve.close()
    assert len(aside(path)) == 2
    assert {stat.S_IMODE(each.stat().st_mode) for each in [path, *aside(path)]} == {0o640}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


@pytest.mark.usefixtures("umask_of_a_unit")
def test_a_file_that_is_there_keeps_its_mode(opened, path):
    path.parent.mkdir()
    path.touch(0o600)
    opened().send([numbered("flows", 0)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_restart_appends(opened, path):
    first = opened()
    first.send([numbered("flows", 0)])
    first.close()
    opened().send([numbered("flows", 1)])
    assert numbers(lines(path)) == [0, 1]


def test_files_are_put_aside_by_size_and_the_oldest_go(opened, path):
    eve = opened("?rotate_mb=1&keep=3")
    for number in range(20):
        eve.send([large(number)])
    assert numbers(lines(path)) == [18, 19]
    assert [numbers(lines(each)) for each in aside(path)] == [[9, 10, 11], [12, 13, 14], [15, 16, 17]]
    assert all(each.stat().st_size <= 1 << 20 for each in aside(path))


@pytest.mark.parametrize(("compress", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_files_put_aside_are_compressed(opened, path, compress, suffix):
    eve = opened(f"?rotate_mb=1&keep=2&compress={compress}")
    for number in range(14):
        eve.send([large(number)])
    eve.close()
    found = aside(path)
    assert [each.suffix for each in found] == [suffix] * 2
    opener = gzip.open if compress == "gzip" else zstandard.open
    with opener(found[-1], "rb") as file:
        assert numbers(file.read().splitlines()) == [9, 10, 11]
    assert stat.S_IMODE(found[-1].stat().st_mode) == stat.S_IMODE(path.stat().st_mode)


def test_only_our_own_files_are_deleted(opened, path):
    path.parent.mkdir()
    others = [
        "eve.json.1",
        "eve.json.20260101",
        "other.json.20260101T000000000000Z",
        "eve.json.20260101T000000000000Z.bak",
    ]
    for name in others:
        (path.parent / name).touch()
    (path.parent / "eve.json.20260101T000000000000Z").touch()
    (path.parent / "eve.json.20260101T000000000000Z.gz.part").touch()
    eve = opened("?rotate_mb=1&keep=1")
    for number in range(8):
        eve.send([large(number)])
    assert {each.name for each in aside(path)} >= set(others)
    assert len(aside(path)) == len(others) + 1


def test_files_are_put_aside_by_time_also_over_a_restart(opened, path, monkeypatch):
    now = [1_700_000_000.0 // 3600 * 3600]
    monkeypatch.setattr("time.time", lambda: now[0])
    eve = opened("?rotate_hours=1")
    eve.send([numbered("flows", 0)])
    now[0] += 3599
    eve.send([numbered("flows", 1)])
    assert aside(path) == []
    now[0] += 1
    eve.send([numbered("flows", 2)])
    assert [numbers(lines(each)) for each in aside(path)] == [[0, 1]]
    eve.close()
    os.utime(path, (now[0], now[0]))
    now[0] += 3600
    opened("?rotate_hours=1").send([numbered("flows", 3)])
    assert numbers(lines(path)) == [3]
    assert len(aside(path)) == 2


def test_an_empty_file_is_not_put_aside(opened, path, monkeypatch):
    now = [7200.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    eve = opened("?rotate_hours=1")
    eve.send([])
    now[0] += 7200
    eve.send([])
    eve.send([numbered("flows", 0)])
    assert aside(path) == []


@pytest.mark.parametrize("asked", [True, False])
def test_a_file_that_was_moved_is_opened_anew(opened, path, asked):
    eve = opened()
    eve.send([numbered("flows", 0)])
    path.rename(f"{path}.1")
    if asked:
        eve.reopen()
    eve.send([numbered("flows", 1)])
    assert numbers(lines(path)) == [1]


def test_a_file_that_was_cut_is_written_on_without_a_hole(opened, path):
    eve = opened()
    eve.send([numbered("flows", 0)])
    shutil.copy(path, f"{path}.1")
    os.truncate(path, 0)
    eve.send([numbered("flows", 1)])
    assert numbers(lines(path)) == [1]


@pytest.mark.parametrize("way", ["create", "copytruncate"])
@pytest.mark.skipif(shutil.which("logrotate") is None, reason="needs logrotate")
async def test_logrotate_loses_nothing(path, tmp_path, way):
    config = tmp_path / "logrotate.conf"
    config.write_text(f"{path} {{\n rotate 3\n su {os.getuid()} {os.getgid()}\n {way}\n}}\n")
    path.parent.mkdir(mode=0o755)
    async with outputs_of(tmp_path, f"eve:{path}?rotate_mb=0") as outputs:
        (delivery,) = outputs.deliveries
        for number in range(3):
            delivery.put(pending("flows", number))
            await until(lambda expected=number + 1: delivery.counts.written == expected)
            command = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(config)]
            subprocess.run(command, check=True, timeout=60)
            outputs.reopen()
        delivery.put(pending("flows", 3))
        await until(lambda: delivery.counts.written == 4)
    assert [numbers(lines(path.with_name(f"eve.json.{age}"))) for age in (3, 2, 1)] == [[0], [1], [2]]
    assert numbers(lines(path)) == [3]


@pytest.mark.parametrize("torn", [b'{"numb', b'{"number":9}'])
def test_what_a_killed_process_left_of_a_line_is_cut_off(opened, path, torn):
    opened().send([numbered("flows", 0)])
    opened().reopen()
    path.write_bytes(path.read_bytes() + torn)
    eve = opened()
    path.rename(f"{path}.x")  # of the first sender, which still has it
    shutil.copy(f"{path}.x", path)
    eve.send([numbered("flows", 1)])
    assert numbers(lines(path)) == [0, 1]


def test_a_file_of_something_else_is_left_alone(opened, path):
    path.parent.mkdir()
    path.write_bytes(b"x" * (2 << 20))
    with pytest.raises(OutputError, match="expected a file of JSON lines"):
        opened().send([numbered("flows", 0)])
    assert path.stat().st_size == 2 << 20


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_regular_file_is_not_waited_for(opened, path, kind):
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OutputError, match="not a regular file"):
        opened().send([numbered("flows", 0)])


def test_two_processes_do_not_write_one_file(opened, path):
    path.parent.mkdir()
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AwayError, match="another process writes it"):
            opened().send([numbered("flows", 0)])
    opened().send([numbered("flows", 0)])


def test_a_full_disk_keeps_whole_lines(path):
    """In a process of its own, whose files may not be larger than 1,000 bytes."""
    code = f"""
import resource, signal
from tapline.service.sinks.eve_file import EveFile
from tapline.service.sinks.output_url import parse_output
from tapline.service.sinks.sender import AwayError
from tests.service.sinks.records import numbered
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
eve = EveFile(parse_output("eve:{path}?rotate_mb=0"))
eve.send([numbered("flows", number) for number in range(5)])
try:
    eve.send([numbered("flows", number) for number in range(5, 50)])
except AwayError as error:
    print(error)
eve.send([numbered("flows", 5)])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == f"{path} cannot be written: file too large\n"
    assert numbers(lines(path)) == list(range(6))


async def test_a_disk_that_was_full_takes_what_waited(tmp_path):
    """A file system of 64 KiB in memory; where none can be mounted, the test is left out."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, timeout=60).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        filler = mounted / "filler"
        filler.write_bytes(b"x" * (60 << 10))
        async with outputs_of(tmp_path, f"eve:{mounted / 'eve.json'}") as outputs:
            (delivery,) = outputs.deliveries
            for number in range(500):
                delivery.put(pending("flows", number))
            await until(lambda: delivery.problem is not None)
            assert "no space left on device" in delivery.problem
            filler.unlink()
            outputs.reopen()
            await until(lambda: delivery.counts.written == 500)
        assert numbers(lines(mounted / "eve.json")) == list(range(500))
    finally:
        subprocess.run(["umount", str(mounted)], check=True, timeout=60)


def test_a_kill_while_writing_leaves_lines_that_a_restart_goes_on_from(opened, path):
    code = f"""
import itertools
from tapline.service.sinks.eve_file import EveFile
from tapline.service.sinks.output_url import parse_output
from tests.service.sinks.records import numbered
eve = EveFile(parse_output("eve:{path}?rotate_mb=0"))
for number in itertools.count():
    eve.send([numbered("flows", number)])
    if number == 1000:
        print("on its way", flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout.readline() == b"on its way\n"
        writer.send_signal(signal.SIGKILL)
    opened().send([numbered("flows", -1)])
    found = numbers(lines(path))
    assert found == [*range(len(found) - 1), -1]
    assert len(found) > 1000
