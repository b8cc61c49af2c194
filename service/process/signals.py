"""The signals that ask a command to stop in order."""

from __future__ import annotations

import signal


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM, and SIGHUP, which a closing terminal sends, unless we were told to outlive that (nohup)."""
    asked = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    return asked
