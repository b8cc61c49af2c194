"""The parent of a Zeek of ours: a process of its own that ends Zeek when its standard input closes, which is when
whoever started it asks for it or is gone, however it went.

`python -I -S zeek_guard.py STOP_SECONDS COMMAND...` exits as the command does, with 128 and the signal's number where
a signal ended it. It imports nothing of the project. The parent-death signal alone would not do: the kernel drops it
when it starts a program with file capabilities, as Zeek often is (prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the command until it ends, or until standard input does; returns its exit status."""
    stop_seconds, command = float(sys.argv[1]), sys.argv[2:]
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, _ignore)  # a handler, so that the descriptor wakes us
    signal.signal(signal.SIGTERM, _ignore)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with(os.getpid()))
    while process.poll() is None:
        ready, _, _ = select.select([sys.stdin, woken], [], [])
        if sys.stdin in ready or signal.SIGTERM in os.read(woken, 64):
            _end(process, stop_seconds)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end(process: subprocess.Popen[bytes], stop_seconds: float) -> None:
    process.terminate()
    try:
        process.wait(stop_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with(parent: int) -> Callable[[], None] | None:
    """What a child calls before it becomes Zeek, so that it ends with us even if we are killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the kernel was asked
            os._exit(1)

    return ask


def _ignore(number: int, frame: FrameType | None) -> None:
    """Only the wake-up descriptor counts."""


if __name__ == "__main__":
    sys.exit(main())
