"""Jobs on disk: whole or not there, one owner at a time, nothing left of what failed."""

import asyncio
import errno
import os

import pytest

from tapline.service.jobs import job_store
from tapline.service.jobs.job import CaptureGoneError, Job, NoRoomError
from tapline.service.jobs.job_store import RECORD, JobsInUseError, JobStore, TooLargeError


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "jobs", tmp_path)
    assert store.open() == []
    yield store
    store.close()


def reopened(store):
    store.close()
    return store.open()


async def aside(work, *args):
    return work(*args)


async def pieces(*data):
    for piece in data:
        yield piece


def receive(store, id, *data, max_bytes=100):
    return asyncio.run(store.receive(id, pieces(*data), max_bytes, aside))


def saved(store, **fields):
    job = Job(id=store.new(), name="a", created=1.0, **fields)
    store.save(job)
    return job


def test_a_directory_has_one_owner(store, tmp_path):
    other = JobStore(tmp_path / "jobs", None)
    with pytest.raises(JobsInUseError, match="another tapline"):
        other.open()
    store.close()
    other.open()
    other.close()


def test_a_directory_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobsInUseError, match="give another --data-dir"):
        JobStore(tmp_path / "file" / "jobs", None).open()


def test_what_was_running_waits_again_and_what_ended_stays(store):
    reading, failed = saved(store, state="reading", flows=7, read_bytes=5), saved(store, state="failed", error="why")
    found = {job.id: job for job in reopened(store)}
    assert (found[reading.id].state, found[reading.id].flows, found[reading.id].read_bytes) == ("queued", 0, 0)
    assert (found[failed.id].state, found[failed.id].error) == ("failed", "why")


def test_what_a_dead_service_left_half_done_is_removed(store):
    id = store.new()
    receive(store, id, b"half")
    job = saved(store)
    (store.directory / job.id / "result.part").write_bytes(b"half")
    (store.directory / job.id / "result.part-wal").write_bytes(b"half")
    (store.directory / job.id / f"{RECORD}.new").write_bytes(b'{"id"')
    assert [found.id for found in reopened(store)] == [job.id]
    assert sorted(path.name for path in store.directory.iterdir()) == sorted([".lock", job.id])
    assert not list((store.directory / job.id).glob("result*"))


@pytest.mark.parametrize("record", [b"", b"{", b'{"id": 3}', b'{"id": "x", "name": "a", "created": 1.0}'])
def test_a_record_that_is_none_is_left_alone(store, record):
    id = store.new()
    (store.directory / id / RECORD).write_bytes(record)
    assert reopened(store) == []
    assert (store.directory / id / RECORD).read_bytes() == record


def test_what_is_not_ours_is_left_alone(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("")
    (store.directory / "notes").mkdir()
    (store.directory / ("ab" * 12)).symlink_to(tmp_path / "elsewhere")
    assert reopened(store) == []
    assert (tmp_path / "elsewhere" / "precious").exists()
    assert (store.directory / "notes").is_dir()


def test_a_done_job_without_its_result_is_not_shown_as_done(store):
    saved(store, state="done")
    assert reopened(store) == []


def test_a_capture_over_the_limit_is_refused_while_it_comes(store):
    with pytest.raises(TooLargeError):
        receive(store, store.new(), b"x" * 60, b"x" * 60)
    assert receive(store, store.new(), b"x" * 60, b"x" * 40) == 100


def test_a_full_disk_is_one_clear_error(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(job_store, "write_all", full)
    with pytest.raises(NoRoomError, match="no space left on device"):
        receive(store, store.new(), b"x")
    monkeypatch.setattr(job_store.os, "fsync", full)
    with pytest.raises(NoRoomError, match="no space left on device"):
        saved(store)


def test_a_capture_that_changed_is_gone(store, tmp_path):
    path = tmp_path / "a.pcap"
    path.write_bytes(b"abc")
    status = path.stat()
    job = Job(id="", name="", created=0.0, path="a.pcap", size_bytes=3, modified_ns=status.st_mtime_ns)
    store.capture(job).close()
    path.write_bytes(b"abcd")
    with pytest.raises(CaptureGoneError, match="has changed"):
        store.capture(job)
    path.unlink()
    with pytest.raises(CaptureGoneError, match="not there"):
        store.capture(job)
