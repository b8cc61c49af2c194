"""The service as an operator has it: a process with a data directory; started, asked, ended and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.paths import ROOT

START_SECONDS = 120
STOP_SECONDS = 60
OURS = [sys.executable, "-c", "from tapline.service.command.cli import main; main()"]


@dataclass
class ServiceProcess:
    """One service after the other on the same port and data."""

    folder: Path
    port: int
    options: list[str]
    command: list[str] = field(default_factory=lambda: list(OURS))
    process: subprocess.Popen[bytes] | None = None
    ended: list[int] = field(default_factory=list)
    ends: list[tuple[float, bool]] = field(default_factory=list)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        log = (self.folder / "log").open("ab")
        words = [*self.command, "serve", "--port", str(self.port), "--dashboard", "off", *self.options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TAPLINE_")}
        self.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**environment, "TAPLINE_CONFIG": "none"},
            stderr=log,
            stdout=log,
            start_new_session=True,
        )
        log.close()
        async with asyncio.timeout(START_SECONDS), self.client() as client:
            while True:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the service ended at its start:\n{self.log_text()[-2000:]}")
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    def client(self) -> httpx.AsyncClient:
        """A client of the service."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    async def get(self, route: str, **query: Any) -> Any:
        """What it answers to a question."""
        async with self.client() as client:
            answer = await client.get(route, params=query)
            answer.raise_for_status()
            return answer.json()

    async def metric(self, name: str) -> dict[str, float]:
        """The values of a metric by its labels."""
        async with self.client() as client:
            lines = (await client.get("/metrics")).text.splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return {key.removeprefix(name): float(value) for key, _, value in found}

    def hang_up(self) -> None:
        """Ask it to open its files anew, as logrotate does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    async def end(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal, and remember how it ended."""
        assert self.process is not None
        asked = time.monotonic()
        self.process.send_signal(number)
        self.ended.append(await asyncio.to_thread(self.process.wait, STOP_SECONDS))
        self.ends.append((asked, number == signal.SIGKILL))

    def kill(self) -> None:
        """Leave nothing behind, however the week ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log_text(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(errors="replace")
