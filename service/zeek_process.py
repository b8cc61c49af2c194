"""A Zeek of our own: where it and the package are found, and one that watches an interface for as long as we do."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

log = structlog.get_logger()

STOP_SECONDS = 10
START_SECONDS = 30
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
    """Zeek on a network interface, publishing to this process only; its logs go to `log_dir`, or away at the end."""

    def __init__(self, interface: str, log_dir: Path | None) -> None:
        """Find what is needed; nothing runs yet.

        Raises:
            ZeekError: no Zeek, no package, or no such interface.
        """
        self._command = [zeek_executable(), "-i", interface, str(package_scripts())]
        self._log_dir = log_dir
        names = [name for _, name in socket.if_nameindex()]
        if interface not in names:
            raise ZeekError(f"no interface {interface}; there are: {', '.join(names)}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self._port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[int]]:
        """Zeek runs while the block does; the task ends when Zeek does."""
        with contextlib.ExitStack() as stack:
            folder = self._log_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tapline-zeek-")))
            folder.mkdir(parents=True, exist_ok=True)
            stderr = stack.enter_context((folder / "zeek-stderr.log").open("w+"))
            process = await asyncio.create_subprocess_exec(
                *self._command,
                f"Tapline::listen_port={self._port}/tcp",
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C reaches us alone: Zeek is stopped in order
            )
            ended = asyncio.create_task(process.wait())
            try:
                yield ended
            finally:
                await _stop(process, ended)
                stderr.seek(0)
                lines = [line for line in stderr.read().splitlines() if "error" in line.lower()]
                for line in lines[:3]:
                    log.error("zeek", said=line)


async def _stop(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            await asyncio.wait({ended}, timeout=STOP_SECONDS)
