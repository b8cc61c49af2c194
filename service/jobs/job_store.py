"""Jobs on disk: a folder each, with the record, the capture and the result. A record is written whole or not at all,
and a folder without one is what a dead service left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from tapline.service.jobs.capture_files import open_below
from tapline.service.jobs.job import CaptureGoneError, Job, JobError, NoRoomError
from tapline.service.log_lines import log
from tapline.service.process.files import write_all

CAPTURE, RESULT, RECORD, LOCK = "capture", "result.db", "job.json", ".lock"
JOB_ID = re.compile(r"[0-9a-f]{24}")
WRITE_BYTES = 1 << 20

Aside = Callable[..., Awaitable[object]]


class JobsInUseError(JobError):
    """The directory cannot be used, or another service has it."""


class TooLargeError(JobError):
    """The capture is larger than is allowed."""


class JobStore:
    """The folders of jobs below one directory, which is this process's alone from `open` to `close`. All of it blocks,
    but for `receive`."""

    def __init__(self, directory: Path, captures_dir: Path | None) -> None:
        self.directory = directory
        self._captures_dir = captures_dir
        self._lock: int | None = None

    def open(self) -> list[Job]:
        """Take the directory, remove what a dead service left half done, give the jobs that are there.

        Raises:
            JobsInUseError: it cannot be used.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise JobsInUseError(f"{self.directory} cannot hold jobs ({reason}): give another --data-dir") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise JobsInUseError(
                f"{self.directory}: another tapline keeps its jobs there; give this one a --data-dir of its own"
            ) from None
        self._lock = lock
        return [job for path in sorted(self.directory.iterdir()) if (job := self._load(path)) is not None]

    def close(self) -> None:
        """Let others have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _load(self, folder: Path) -> Job | None:
        if not JOB_ID.fullmatch(folder.name) or folder.is_symlink():
            return None
        try:
            job = msgspec.json.decode((folder / RECORD).read_bytes(), type=Job)
        except FileNotFoundError:
            log.info("removing what is left of a job", job=folder.name)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the record of a job cannot be read", job=folder.name, error=type(error).__name__)
            return None
        remove_result(folder / RESULT.replace(".db", ".part"))
        if job.id != folder.name or (job.state == "done" and not self.result(job.id).exists()):
            log.warning("a job lacks its result", job=folder.name)
            return None
        if not job.has_ended:
            job.state, job.started, job.read_bytes, job.flows = "queued", None, 0, 0
        return job

    def result(self, id: str) -> Path:
        """Where the result of a job is."""
        return self.directory / id / RESULT

    def new(self) -> str:
        """The id of a new job, whose folder is there, and is no job until it has been saved.

        Raises:
            NoRoomError: it cannot be made.
        """
        id = secrets.token_hex(12)
        with _room():
            (self.directory / id).mkdir(mode=0o700)
        return id

    async def receive(self, id: str, chunks: AsyncIterator[bytes], max_bytes: int, aside: Aside) -> int:
        """Keep the capture of a job; how many bytes it has.

        Raises:
            TooLargeError, NoRoomError: it is not kept.
        """
        size_bytes = 0
        waiting = bytearray()
        with _room():
            file = (self.directory / id / CAPTURE).open("xb", buffering=0)
        with file:
            async for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > max_bytes:
                    raise TooLargeError(f"the capture is larger than the limit of {max_bytes >> 20} MiB")
                waiting += chunk
                if len(waiting) >= WRITE_BYTES:
                    with _room():
                        await aside(write_all, file, bytes(waiting))
                    waiting.clear()
            with _room():
                await aside(write_all, file, bytes(waiting))
                await aside(os.fsync, file.fileno())
        return size_bytes

    def capture(self, job: Job) -> BinaryIO:
        """The capture of a job, opened anew.

        Raises:
            CaptureGoneError: it is not there, or not what it was when the job was made.
        """
        try:
            file = (
                (self.directory / job.id / CAPTURE).open("rb", buffering=0)
                if job.path is None
                else open_below(self._captures_dir, job.path)
            )
        except (OSError, JobError):
            raise CaptureGoneError("the capture is not there any more") from None
        status = os.fstat(file.fileno())
        if job.modified_ns is not None and (status.st_size, status.st_mtime_ns) != (job.size_bytes, job.modified_ns):
            file.close()
            raise CaptureGoneError("the capture has changed since the job was made")
        return file

    def save(self, job: Job) -> None:
        """Write the record of a job: on disk whole when this returns.

        Raises:
            NoRoomError: it cannot be written.
        """
        folder = self.directory / job.id
        new = folder / f"{RECORD}.new"
        with _room():
            with new.open("wb") as file:
                file.write(msgspec.json.encode(job))
                file.flush()
                os.fsync(file.fileno())
            new.rename(folder / RECORD)
            _sync(folder)

    def keep_record_alone(self, id: str) -> None:
        """Remove the capture and the result of a job that has none to show."""
        with contextlib.suppress(OSError):
            (self.directory / id / CAPTURE).unlink(missing_ok=True)
            remove_result(self.result(id))

    def remove(self, id: str) -> None:
        """Remove a job; killed meanwhile, what is left is removed at the next start."""
        folder = self.directory / id
        with contextlib.suppress(OSError):
            (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def size_bytes(self, id: str) -> int:
        """What a job takes on disk."""
        found = 0
        with contextlib.suppress(OSError):
            for path in (self.directory / id).iterdir():
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    found += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return found


def remove_result(path: Path) -> None:
    """Remove a result with what SQLite keeps beside it, where they are there."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """See that what was renamed in a folder stays so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        log.warning("no room for a job", reason=reason)
        raise NoRoomError(f"the job cannot be kept on disk: {reason}") from None
