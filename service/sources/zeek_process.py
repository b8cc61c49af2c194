"""A Zeek of our own: where it and the package are found, and one that watches an interface for as long as we do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tapline.installation import PACKAGE
from tapline.models.foreign_text import clean
from tapline.service.log_lines import log
from tapline.service.sources import zeek_guard
from tapline.service.sources.bus.transport import pause_seconds
from tapline.service.sources.zeek_folder import sweep
from tapline.service.sources.zeek_owners import OWNER_VARIABLE
from tapline.service.sources.zeek_runs import trim_run, zeek_run

STOP_SECONDS = 10
STEADY_SECONDS = 60
"""A Zeek that ran this long was healthy: the next pause is short again."""

SAID_BYTES = 8192
"""How much of the end of what Zeek says is kept."""

SENSOR_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,64}")
ROTATION = "1hr"
"""How often Zeek rotates its logs, unless the operator says otherwise."""

TRIM_SECONDS = 60
"""How often it is looked whether the logs of a run are within their bound."""

NO_RIGHT = re.compile(r"permission|not permitted|denied", re.IGNORECASE)

"""Where the Zeek package lies below the folder of this one: in a checkout, and in an installed wheel."""

HOW_TO_GET_ZEEK = (
    "no `zeek` on PATH. Ways to get Zeek 8 or 9: the packages of docs.zeek.org/en/lts/install.html, the container "
    "image zeek/zeek:lts (see docker-compose.yml), or a sensor elsewhere with `zeek/` installed: tapline watch "
    "--zeek ws://host:27759"
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
    scripts = (PACKAGE / "zeek_scripts").resolve()
    if (scripts / "__load__.zeek").exists():
        return scripts
    raise ZeekError("this installation lacks the Zeek package: install tapline again, or run from a checkout")


@dataclass(frozen=True)
class ZeekLogs:
    """Where Zeeks keep their logs: each run in a directory of its own below `directory`.

    `max_mb`: most of one run, in MiB; beyond, its oldest rotated logs are removed, and that is logged. 0: no bound.
    """

    directory: Path
    max_mb: int = 0


class ZeekOnInterface:
    """Zeek on a network interface, publishing to this process only.

    However this process ends, Zeek ends with it (`zeek_guard`). `failure` says why Zeek last ended by itself; it is
    then started again after a pause. `name` is what its bus is called: the same at every start. `folder` is where it
    keeps its logs now.
    """

    def __init__(self, interface: str, logs: ZeekLogs, more: Sequence[str] = ()) -> None:
        """Find what is needed; nothing runs yet. `interface`: its name, or `eth0=NAME` to name the sensor; `more`:
        further arguments, as of `zeek_options.zeek_arguments`.

        Raises:
            ZeekError: no Zeek, no package, no such interface, or a name that cannot be used.
        """
        self.interface, named, sensor = interface.partition("=")
        self.sensor = sensor if named else f"{socket.gethostname()[:40]}/{self.interface}"
        self.name = f"interface:{self.interface}"
        self.failure: str | None = None
        self.is_down = False
        self.folder: Path | None = None
        if not SENSOR_NAME.fullmatch(self.sensor):
            raise ZeekError(f"{self.interface}: a sensor's name is 1 to 64 letters, digits and . _ : / -")
        self._logs = logs
        names = [name for _, name in socket.if_nameindex()]
        if self.interface not in names:
            raise ZeekError(f"no interface {self.interface}; there are: {', '.join(names)}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._command = [
            zeek_executable(),
            "-C",  # a network card fills in the checksums of what this host sends after Zeek has seen it
            "-i",
            self.interface,
            str(package_scripts()),
            f"Log::default_rotation_interval={ROTATION}",
            *more,
            f"Tapline::listen_port={port}/tcp",
            f"Tapline::sensor={self.sensor}",
        ]
        self.url = f"ws://127.0.0.1:{port}"

    async def run(self) -> None:
        """Keep Zeek running until cancelled, then stop it in order.

        Raises:
            ZeekError: there is no directory for it to run in; `failure` says the same.
        """
        await asyncio.to_thread(sweep)
        failures = 0
        while True:
            started = time.monotonic()
            with contextlib.ExitStack() as stack:
                try:
                    self.folder = stack.enter_context(zeek_run(self._logs.directory, self.sensor))
                except OSError as error:
                    self.failure = f"Zeek on {self.interface} has no directory to run in: {error}"
                    raise ZeekError(self.failure) from None
                self.is_down = False
                log.info("zeek started", interface=self.interface, logs=str(self.folder))
                status, said = await self._run_once(self.folder)
            self.failure = f"Zeek on {self.interface} {ending(status, said)}"
            self.is_down = True
            log.error("zeek ended, starting it again", interface=self.interface, reason=self.failure)
            failures = failures + 1 if time.monotonic() - started < STEADY_SECONDS else 0
            await asyncio.sleep(pause_seconds(failures))

    async def _run_once(self, folder: Path) -> tuple[int, bytes]:
        """Run Zeek until it ends; returns its exit status and the end of what it said. Cancelled, Zeek is stopped."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", zeek_guard.__file__, str(STOP_SECONDS), *self._command),
            cwd=folder,
            env={**os.environ, OWNER_VARIABLE: str(folder)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us alone: Zeek is stopped in order
        )
        ended = asyncio.create_task(_listen(process))
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=TRIM_SECONDS)
                await asyncio.to_thread(self._trim, folder)
            return ended.result()
        finally:
            await _stop(process, ended)

    def _trim(self, folder: Path) -> None:
        """Keep the logs of a run within their bound."""
        if not self._logs.max_mb:
            return
        try:
            count, removed_bytes = trim_run(folder, self._logs.max_mb << 20)
        except OSError as error:
            log.warning("zeek's logs cannot be looked at", folder=str(folder), reason=error.strerror)
            return
        if count:
            log.warning("oldest logs of this run removed", folder=str(folder), logs=count, mib=removed_bytes >> 20)


def zeeks_on(interfaces: Sequence[str], logs: ZeekLogs, more: Sequence[str] = ()) -> list[ZeekOnInterface]:
    """A Zeek for each interface, each with a name of its own as a sensor.

    Raises:
        ZeekError: as of `ZeekOnInterface`, or an interface or a sensor's name comes twice.
    """
    zeeks: list[ZeekOnInterface] = []
    for interface in interfaces:
        zeek = ZeekOnInterface(interface, logs, more)
        for other in zeeks:
            if zeek.interface == other.interface:
                raise ZeekError(f"the interface {zeek.interface} is named twice")
            if zeek.sensor == other.sensor:
                raise ZeekError(f"two sensors are named {zeek.sensor}: their counters would overwrite each other")
        zeeks.append(zeek)
    return zeeks


def ending(status: int, said: bytes) -> str:
    """How Zeek ended, in words for an operator: by its exit status and the last of what it said, cleaned of escapes."""
    number = status - 128 if status > 128 else -status
    if number > 0:
        return f"was ended by signal {number} ({signal.strsignal(number) or 'unknown'})"
    lines = [line for line in map(str.strip, said.decode(errors="replace").splitlines()) if line]
    errors = [line for line in lines if "error" in line.lower()]
    word = (errors or lines)[-1:]
    text = f"ended with status {status}" + (f": {clean(word[0])}" if word else ", and said nothing")
    return text + (" (capturing takes root, or CAP_NET_RAW)" if word and NO_RIGHT.search(word[0]) else "")


async def _listen(process: asyncio.subprocess.Process) -> tuple[int, bytes]:
    """Read what Zeek says until it ends, and keep the end of it."""
    assert process.stderr is not None
    said = b""
    while more := await process.stderr.read(SAID_BYTES):
        said = (said + more)[-SAID_BYTES:]
    return await process.wait(), said


async def _stop(process: asyncio.subprocess.Process, ended: asyncio.Task[tuple[int, bytes]]) -> None:
    """Ask the guard to stop Zeek, which it does within `STOP_SECONDS`; kill it where it does not."""
    assert process.stdin is not None
    process.stdin.close()
    await asyncio.wait({ended}, timeout=2 * STOP_SECONDS)
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait({ended}, timeout=STOP_SECONDS)
