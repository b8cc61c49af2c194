"""The signals that ask a command to stop in order, and what SIGHUP asks of one that has no terminal."""

from __future__ import annotations

import os
import signal


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM, and SIGHUP, which a closing terminal sends, unless we were told to outlive that (nohup)."""
    asked = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    return asked


def has_terminal() -> bool:
    """Whether this process has a controlling terminal (termios(3)), whose end is told by SIGHUP. To a daemon, which has
    none, that signal says: open your files anew."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
