"""Backups beside what is written, and restores that are whole or did not happen."""

import asyncio
import contextlib
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import threading

import pytest
import zstandard

from tapline.service.backup import archive, restoring
from tapline.service.backup.archive import TABLE, BackupError, unpack
from tapline.service.backup.kept_places import HISTORY, Places, history_file
from tapline.service.backup.making import make_backup
from tapline.service.backup.restoring import restore
from tapline.service.drift.drift_state import DriftState, ModelHours
from tapline.service.jobs.job import Job
from tapline.service.jobs.job_store import CAPTURE, RESULT, JobStore
from tapline.service.traces.window_state import JOURNAL, SNAPSHOT
from tests.service.history import kept
from tests.service.history.test_alerts import ALERTS
from tests.service.history.test_versions import EVER, OLD, file_of

IDS = ["a" * 24, "b" * 24]


def places(folder):
    data = folder / "data"
    return Places(data, data / "history.db", folder / "state", folder / "models")


def url(places):
    return f"sqlite:///{places.history}"


def content(folder):
    """Every file below a folder with its content, but for locks, which hold nothing."""
    found = {path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", ".lock")}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def write_history(place, count):
    """Keep so many flows in the history of a URL."""

    async def main():
        async with kept.running(place) as history:
            for number in range(count):
                history.flow(kept.BUS, kept.flow(f"C{number}"), kept.verdict())
            await kept.settled(history)

    asyncio.run(main())


def uids(file):
    with sqlite3.connect(file) as connection:
        found = connection.execute("SELECT uid FROM flows ORDER BY number").fetchall()
    connection.close()
    return [uid for (uid,) in found]


@pytest.fixture
def filled(tmp_path):
    """A service's places with something in each."""
    found = places(tmp_path / "old")
    for folder in (found.data_dir, found.jobs, found.state / "random", found.models / "own" / "1"):
        folder.mkdir(parents=True)
    write_history(url(found), 3)
    store = JobStore(found.jobs, None)
    for id, state in zip(IDS, ("done", "queued"), strict=True):
        (found.jobs / id).mkdir()
        (found.jobs / id / CAPTURE).write_bytes(b"capture")
        store.save(Job(id=id, name="a.pcap", created=1.0, state=state, size_bytes=7))
    (found.jobs / IDS[0] / RESULT).write_bytes(b"result")
    (found.state / "random" / SNAPSHOT).write_bytes(b"open windows")
    (found.state / "random" / JOURNAL).write_bytes(b"closed windows")
    with contextlib.closing(DriftState(found.data_dir / "drift")) as drift:
        drift.save(ModelHours("own", "1", "", []))
    (found.models / "own" / "1" / "checkpoint.json").write_bytes(b"{}")
    return found


@pytest.fixture
def backed_up(filled, tmp_path):
    path = tmp_path / "backup.tar.zst"
    make_backup(filled, path, captures=False)
    return path


def test_what_is_backed_up_comes_back(filled, tmp_path):
    path = tmp_path / "backup.tar.zst"
    table, size_bytes = make_backup(filled, path, captures=False)
    assert size_bytes == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    new = places(tmp_path / "new")
    restored, aside = restore(path, new, replace=False)
    assert (restored, aside) == (table, [])
    assert uids(new.history) == ["C0", "C1", "C2"]
    jobs = {job.id: job.state for job in JobStore(new.jobs, None).open()}
    assert jobs == dict(zip(IDS, ("done", "queued"), strict=True))
    assert not (new.jobs / IDS[0] / CAPTURE).exists()
    assert (new.jobs / IDS[1] / CAPTURE).read_bytes() == b"capture"  # it begins again
    assert content(new.state) == content(filled.state)
    assert content(new.models) == content(filled.models)
    assert content(new.data_dir / "drift") == content(filled.data_dir / "drift")
    assert "own.drift" in content(new.data_dir / "drift")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "new", "backup.tar.zst"}
    assert [path.name for path in new.data_dir.iterdir() if path.name.startswith(".")] == []


def test_a_restore_that_fails_makes_no_folder(backed_up, tmp_path):
    backed_up.write_bytes(backed_up.read_bytes()[:-10])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BackupError, match=r"whole backup|damaged"):
        restore(backed_up, places(tmp_path / "new"), replace=False)
    assert sorted(tmp_path.iterdir()) == before


def test_captures_of_ended_jobs_come_on_request(filled, tmp_path):
    table, _ = make_backup(filled, tmp_path / "b", captures=True)
    assert f"jobs/{IDS[0]}/{CAPTURE}" in table.files


def test_a_history_that_is_written_is_copied_as_of_one_moment(tmp_path):
    found = places(tmp_path / "old")
    found.data_dir.mkdir(parents=True)
    write_history(url(found), 1)
    writing = threading.Thread(target=write_history, args=(url(found), 4000))
    writing.start()
    copies = []
    while writing.is_alive() or not copies:
        path = tmp_path / f"{len(copies)}"
        make_backup(found, path, captures=False)
        copies.append(path)
    writing.join()
    whole = uids(found.history)
    for number, path in enumerate(copies):
        new = places(tmp_path / f"new{number}")
        restore(path, new, replace=False)
        copied = uids(new.history)
        assert copied == whole[: len(copied)]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99, 1])
def test_a_backup_that_is_cut_short_changes_nothing(backed_up, filled, share):
    data = backed_up.read_bytes()
    backed_up.write_bytes(data[: min(int(len(data) * share), len(data) - 1)])
    before = content(filled.data_dir.parent)
    with pytest.raises(BackupError, match=r"whole backup|damaged"):
        restore(backed_up, filled, replace=True)
    assert content(filled.data_dir.parent) == before


def test_no_flipped_byte_changes_what_comes_back(backed_up, tmp_path):
    data = backed_up.read_bytes()
    whole = tmp_path / "whole"
    whole.mkdir()
    unpack(backed_up, whole)
    refused = 0
    for at in range(0, len(data), max(1, len(data) // 60)):
        backed_up.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        folder = tmp_path / f"{at}"
        folder.mkdir()
        try:
            unpack(backed_up, folder)
        except BackupError:
            refused += 1
        else:  # the size of the window, say, changes nothing
            assert content(folder) == content(whole)
    assert refused > 50


def packed(path, *members, table="{}"):
    """A tar file of these members and a table."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member in (*members, (TABLE, table.encode())) if table is not None else members:
            entry = tarfile.TarInfo(member[0])
            entry.type = member[2] if len(member) > 2 else tarfile.REGTYPE
            entry.size, entry.linkname = len(member[1]), "/etc/passwd" if entry.type != tarfile.REGTYPE else ""
            tar.addfile(entry, io.BytesIO(member[1]))
    path.write_bytes(zstandard.compress(raw.getvalue()))
    return path


def table_of(**files):
    entries = [
        f'"{name}":{{"size_bytes":{len(data)},"sha256":"{hashlib.sha256(data).hexdigest()}"}}'
        for name, data in files.items()
    ]
    return '{"made":"x","tapline":"1","format":1,"files":{' + ",".join(entries) + "}}"


HOSTILE = {
    "above": [("../x", b"x")],
    "absolute": [("/tmp/x", b"x")],
    "inside": [("jobs/../../x", b"x")],
    "hidden": [("jobs/.x", b"x")],
    "link": [("state", b"", tarfile.SYMTYPE)],
    "hard link": [("state", b"", tarfile.LNKTYPE)],
    "device": [("state", b"", tarfile.CHRTYPE)],
    "twice": [("x", b"x"), ("x", b"y")],
    "after the table": [(TABLE, table_of(x=b"x").encode()), ("x", b"x")],
    "unknown": [("x", b"x")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_a_backup_of_others_writes_nowhere_else(members, tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = packed(tmp_path / "backup", *members, table=table_of())
    with pytest.raises(BackupError):
        unpack(path, folder)
    assert {found.name for found in tmp_path.rglob("*") if found.is_file()} <= {"backup", "x"}
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "a" / "x").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "cut short"),
        ("[]", "its table cannot be read"),
        ('{"made":"x","tapline":"9.9","format":7}', "format 7, and this tapline reads 1: use tapline 9.9"),
        (table_of(y=b"y"), "not what its table says"),
    ],
)
def test_tables_that_are_none(table, said, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    with pytest.raises(BackupError, match=said):
        unpack(packed(tmp_path / "backup", table=table), folder)


def test_something_else_is_no_backup(tmp_path):
    path = tmp_path / "backup"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(BackupError, match="not a whole backup of tapline"):
        restore(path, places(tmp_path / "new"), replace=False)
    with pytest.raises(BackupError, match="there is no such backup"):
        restore(tmp_path / "none", places(tmp_path / "new"), replace=False)


def test_what_is_there_is_kept_aside_or_not_touched(backed_up, filled, tmp_path):
    write_history(url(filled), 5)
    (filled.state / "random" / SNAPSHOT).write_bytes(b"later windows")
    before = content(filled.data_dir)
    with pytest.raises(BackupError, match="give --replace"):
        restore(backed_up, filled, replace=False)
    assert content(filled.data_dir) == before
    _, aside = restore(backed_up, filled, replace=True)
    assert uids(filled.history) == ["C0", "C1", "C2"]
    assert (filled.state / "random" / SNAPSHOT).read_bytes() == b"open windows"
    asked = {filled.data_dir, filled.jobs, filled.data_dir / "drift", filled.state, filled.models}
    assert {folder.parent for folder in aside} == asked
    kept_aside = next(folder for folder in aside if folder.parent == filled.data_dir)
    assert len(uids(kept_aside / HISTORY)) > 3
    restore(backed_up, filled, replace=True)  # what lies aside is in nobody's way


def test_an_error_in_the_middle_takes_all_of_it_back(backed_up, filled, monkeypatch):
    write_history(url(filled), 5)
    before = content(filled.data_dir.parent)
    move, left = shutil.move, None

    def failing(source, target):
        nonlocal left
        if left is not None:
            left -= 1
            if left < 0:
                left = None  # taking back works
                raise OSError(28, "No space left on device", str(target))
        return move(source, target)

    monkeypatch.setattr(restoring.shutil, "move", failing)
    for number in range(8):
        left = number
        with pytest.raises(BackupError, match="No space left on device"):
            restore(backed_up, filled, replace=True)
        assert content(filled.data_dir.parent) == before


def test_a_history_of_a_newer_tapline_is_refused(filled, tmp_path):
    with sqlite3.connect(filled.history) as connection:
        connection.execute("UPDATE tapline_history SET schema_version = 999")
    connection.close()
    path = tmp_path / "backup"
    make_backup(filled, path, captures=False)
    with pytest.raises(BackupError, match="version 999"):
        restore(path, places(tmp_path / "new"), replace=False)
    assert content(tmp_path / "new") == {}


@pytest.mark.parametrize("version", OLD)
def test_a_history_of_an_earlier_tapline_comes_back_as_it_was_and_is_brought_to_this_version(version, filled, tmp_path):
    shutil.copy(file_of(version), filled.history)
    for side in ("-wal", "-shm"):
        filled.history.with_name(filled.history.name + side).unlink(missing_ok=True)
    path, new = tmp_path / "backup", places(tmp_path / "new")
    make_backup(filled, path, captures=False)
    restore(path, new, replace=False)
    with contextlib.closing(sqlite3.connect(new.history)) as connection:
        assert connection.execute("SELECT schema_version FROM tapline_history").fetchall() == [(version,)]
    assert uids(new.history) == ["a", "b", "c", "d", "e"]

    async def main():
        async with kept.running(url(new), **EVER) as history:
            for one in ALERTS if version == 1 else ():
                history.alert(one)
            await kept.settled(history)
            await history.acknowledge("c", "anna")
            await kept.settled(history)
            return {one.id: one.acknowledged_by for one in (await history.alerts()).items}

    assert asyncio.run(main()) == {"a": None, "b": None, "c": "anna", "d": None, "e": None}


@pytest.mark.parametrize("lacking", ["history", "state", "models"])
def test_a_part_without_a_place_is_told(lacking, backed_up, tmp_path):
    whole = places(tmp_path / "new")
    less = Places(
        **{
            name: None if name == lacking else getattr(whole, name)
            for name in ("data_dir", "history", "state", "models")
        }
    )
    with pytest.raises(BackupError, match="say with --"):
        restore(backed_up, less, replace=False)


def test_a_backup_that_fails_leaves_nothing(filled, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.os, "fsync", full)
    with pytest.raises(BackupError, match="No space left on device"):
        make_backup(filled, tmp_path / "backup", captures=False)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}
    with pytest.raises(BackupError, match="cannot be made: No such file"):
        make_backup(filled, tmp_path / "none" / "backup", captures=False)


def test_no_backup_is_written_over(backed_up, filled):
    before = backed_up.read_bytes()
    with pytest.raises(BackupError, match="give another name"):
        make_backup(filled, backed_up, captures=False)
    assert backed_up.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("sqlite", "/data/history.db"),
        ("none", None),
        ("sqlite:////other/h.db", "/other/h.db"),
        ("postgresql+psycopg://me@host/base", None),
    ],
)
def test_the_history_is_a_file_or_none_of_ours(place, file):
    found = history_file(place, archive.Path("/data"))
    assert (found and os.fspath(found)) == file
