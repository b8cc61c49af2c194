"""Folders that Zeeks of ours run in: each is locked while its owner lives; what a dead one left is swept at the next
start, a Zeek that still runs included."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

log = structlog.get_logger()

PREFIX = "tapline-zeek-"
LOCK = ".tapline-lock"
OWNER_VARIABLE = "TAPLINE_ZEEK_FOLDER"
"""Set in the environment of each Zeek that we start, to its folder: how what we left is told from what is not ours."""

END_SECONDS = 5


class FolderInUseError(RuntimeError):
    """Another process of ours runs a Zeek in that folder."""


@contextlib.contextmanager
def zeek_folder(kept: Path | None = None) -> Iterator[Path]:
    """A folder for one Zeek, ours alone while the block runs: `kept`, or a temporary one that is removed at the end.

    Raises:
        FolderInUseError: `kept` is another's.
        OSError: the folder cannot be made.
    """
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        with _locked(kept) as is_ours:
            if not is_ours:
                raise FolderInUseError(f"{kept}: another tapline runs Zeek there; give this one a folder of its own")
            yield kept.resolve()
        return
    while True:
        made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        with made as name, _locked(Path(name)) as is_ours:
            if is_ours:  # otherwise a sweep took it for abandoned before it was locked
                yield Path(name).resolve()
                return


def sweep(folder: Path) -> None:
    """End the Zeeks that dead owners left: in `folder`, which is ours now, and in temporary ones, which are removed.

    Leaves alone what is not ours. May wait twice `END_SECONDS` for a Zeek to end.
    """
    _end_zeeks(folder)
    for other in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another sweep is faster, or it cannot be removed
            if other.is_symlink() or other.stat().st_uid != os.geteuid() or not (other / LOCK).exists():
                continue
            with _locked(other) as is_ours:
                if is_ours:
                    _end_zeeks(other)
                    shutil.rmtree(other)
                    log.info("folder of an earlier run removed", folder=str(other))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which the kernel frees with its owner; False: it is another's, or the folder vanished."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield os.fstat(lock).st_nlink > 0
    finally:
        os.close(lock)


def _end_zeeks(folder: Path) -> None:
    """End the processes that were started with this folder as theirs, and wait for it."""
    if not hasattr(os, "pidfd_open"):
        return  # without Linux's /proc nothing tells whose they are
    mark = f"{OWNER_VARIABLE}={folder}".encode()
    with contextlib.ExitStack() as stack:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (process := _process(int(entry.name), mark)) is not None:
                stack.callback(os.close, process)
                found.append(process)
        if found:
            log.warning("a Zeek of an earlier run was left: ending it", folder=str(folder))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, number)
            found = [process for process in found if not _has_ended(process)]


def _has_ended(process: int) -> bool:
    """Whether a process ends within `END_SECONDS`, by its descriptor."""
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    return bool(waiting.poll(END_SECONDS * 1000))


def _process(number: int, mark: bytes) -> int | None:
    """A descriptor of a process with that mark in its environment, which no later process of the same number can be."""
    if number == os.getpid():
        return None
    try:
        descriptor = os.pidfd_open(number)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if mark in Path(f"/proc/{number}/environ").read_bytes().split(b"\0"):
            return descriptor
    os.close(descriptor)
    return None
