"""A Zeek of our own: where it and the package are found, and one that watches an interface for as long as we do."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import TextIO

import structlog

from service.sources.bus.transport import pause_seconds

log = structlog.get_logger()

STOP_SECONDS = 10
STEADY_SECONDS = 60
"""A Zeek that ran this long was healthy: the next pause is short again."""

SCRIPTS = ("zeek/scripts", "service/zeek_scripts")
"""Where the Zeek package lies below the folder of this one: in a checkout, and in an installed wheel."""

HOW_TO_GET_ZEEK = (
    "no `zeek` on PATH. Ways to get Zeek 8: the packages of docs.zeek.org/en/lts/install.html, the container image "
    "zeek/zeek:lts (see docker-compose.yml), or a sensor elsewhere with `zeek/` installed: tapline watch --zeek ws://host:27759"
)


class ZeekError(RuntimeError):
    """Zeek is missing, or ended when it should not have; the message says what to do."""


def zeek_executable() -> str:
    """The path of `zeek`.

    Raises:
        ZeekError: there is none, with the ways to get one.
    """
    path = shutil.which("zeek")
    if path is None:
        raise ZeekError(HOW_TO_GET_ZEEK)
    return path


def package_scripts() -> Path:
    """The folder of the Zeek package's scripts.

    Raises:
        ZeekError: this installation lacks it.
    """
    root = Path(__file__).resolve().parent.parent
    for place in SCRIPTS:
        if (root / place / "__load__.zeek").exists():
            return root / place
    raise ZeekError("this installation lacks the Zeek package: install tapline again, or run from a checkout")


class ZeekOnInterface:
    """Zeek on a network interface, publishing to this process only; its logs go to `log_dir`, or away at the end.

    `failure` says why Zeek last ended by itself; it is then started again after a pause.
    """

    def __init__(self, interface: str, log_dir: Path | None = None) -> None:
        """Find what is needed; nothing runs yet.

        Raises:
            ZeekError: no Zeek, no package, or no such interface.
        """
        self.interface = interface
        self.failure: str | None = None
        # -C: a network card fills in the checksums of what this host sends after Zeek has seen it
        self._command = [zeek_executable(), "-C", "-i", interface, str(package_scripts())]
        self._log_dir = log_dir
        names = [name for _, name in socket.if_nameindex()]
        if interface not in names:
            raise ZeekError(f"no interface {interface}; there are: {', '.join(names)}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._command.append(f"Tapline::listen_port={port}/tcp")
        self.url = f"ws://127.0.0.1:{port}"

    async def run(self) -> None:
        """Keep Zeek running until cancelled, then stop it in order."""
        failures = 0
        while True:
            started = time.monotonic()
            with contextlib.ExitStack() as stack:
                folder = self._log_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tapline-zeek-")))
                folder.mkdir(parents=True, exist_ok=True)
                stderr = stack.enter_context((folder / "zeek-stderr.log").open("w+"))
                status = await self._run_once(folder, stderr)
                self.failure = f"Zeek on {self.interface} ended with status {status}: {_reason(stderr)}"
            log.error("zeek ended, starting it again", interface=self.interface, reason=self.failure)
            failures = failures + 1 if time.monotonic() - started < STEADY_SECONDS else 0
            await asyncio.sleep(pause_seconds(failures))

    async def _run_once(self, folder: Path, stderr: TextIO) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C reaches us alone: Zeek is stopped in order
        )
        ended = asyncio.create_task(process.wait())
        try:
            return await asyncio.shield(ended)
        finally:
            await _stop(process, ended)


def _reason(stderr: TextIO) -> str:
    """Zeek's own word for why it ended."""
    stderr.seek(0)
    lines = [line.strip() for line in stderr.read(1 << 16).splitlines() if "error" in line.lower()]
    return lines[0][:200] if lines else "may it capture there (root, or CAP_NET_RAW)?"


async def _stop(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            await asyncio.wait({ended}, timeout=STOP_SECONDS)
