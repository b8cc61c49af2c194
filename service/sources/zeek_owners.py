"""Which Zeek is whose: each runs in a directory that is locked while its owner lives, and says so in its environment;
one that a dead owner left is ended by whoever starts next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from tapline.service.log_lines import log

LOCK = ".tapline-lock"
OWNER_VARIABLE = "TAPLINE_ZEEK_FOLDER"
"""Set in the environment of each Zeek that we start, to its directory: what tells those that we left from others'."""

END_SECONDS = 5


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[bool]:
    """Hold the lock of a directory, which the kernel frees with its owner; False: it is another's, or it vanished."""
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


def end_abandoned() -> None:
    """End the Zeeks whose owners are dead. Leaves alone what is not ours, and may wait twice `END_SECONDS`."""
    if not hasattr(os, "pidfd_open"):
        return  # without Linux's /proc nothing tells whose they are
    with contextlib.ExitStack() as stack:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (process := _abandoned(int(entry.name))) is not None:
                stack.callback(os.close, process)
                found.append(process)
        if found:
            log.warning("a Zeek of an earlier run was left: ending it", processes=len(found))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, number)
            found = [process for process in found if not _has_ended(process)]


def _abandoned(number: int) -> int | None:
    """A descriptor of a process that was started for a directory which nobody owns any more, which no later process of
    the same number can be."""
    if number == os.getpid():
        return None
    try:
        descriptor = os.pidfd_open(number)
    except OSError:
        return None
    mark = f"{OWNER_VARIABLE}=".encode()
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{number}/environ").read_bytes().split(b"\0"):
            if variable.startswith(mark) and not _is_owned(Path(os.fsdecode(variable[len(mark) :]))):
                return descriptor
    os.close(descriptor)
    return None


def _is_owned(folder: Path) -> bool:
    """Whether somebody holds the lock of a directory, which the kernel frees with its owner. True where that cannot be
    known."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _has_ended(process: int) -> bool:
    """Whether a process ends within `END_SECONDS`, by its descriptor."""
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    return bool(waiting.poll(END_SECONDS * 1000))
