"""What other users see of this process in `ps`: addresses of sensors without their passwords, and no keys."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit


def hide_passwords(urls: Iterable[str]) -> None:
    """Overwrite with `*` what stands before the `@` of these addresses."""
    for url in urls:
        if userinfo := _userinfo(url):
            hide(userinfo.encode(), before=b"@")


def hide(secret: bytes, before: bytes = b"\0") -> None:
    """Overwrite a secret with `*`, wherever it stands before this in the arguments that the kernel shows of us.

    Linux alone, where the arguments are memory of the process (proc_pid_cmdline(5)); elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(field) for field in fields[45:47])  # arg_start and arg_end, the 48th and 49th of proc_pid_stat(5)
    shown = ctypes.string_at(start, end - start)
    at = shown.find(secret + before)
    while at >= 0:
        ctypes.memset(start + at, ord("*"), len(secret))
        at = shown.find(secret + before, at + 1)


def _userinfo(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[0]
    except ValueError:
        return url.partition("://")[2].rpartition("@")[0]
