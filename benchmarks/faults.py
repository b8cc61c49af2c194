"""What breaks and what it costs: kills and cuts in the middle of live traffic, with a real Zeek on a real interface.

    sudo python benchmarks/faults.py CAPTURE [--packets 40000] [--pps 2000] [--checkpoint DIR] [SCENARIO...]

Makes two network namespaces joined by a veth pair; tcpreplay sends the capture into one, Zeek with the package and
`tapline serve` run in the other. Needs root, iproute2, tcpreplay, tcpdump and `zeek` on PATH. The bus goes through a
small proxy, so that connections can be cut or silenced. Every scenario prints how long it took until flows came again,
what was lost, and whether the counters say so. Namespaces and processes are gone at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardware import describe
from namespaces import SENSOR, SENSOR_DEVICE, namespaces, replay_command, run

ROOT = Path(__file__).resolve().parent.parent
BUS, PROXY, API = 27759, 27760, 8000
FAULT_AFTER_SECONDS = 6
STALL_SECONDS = 30
LIVE_QUEUE_FLOWS = 1000
SERVICE = """
import pathlib, time
from tapline.service.inference import classifier
from tapline.service.command import cli
classify = classifier.Classifier.classify
def held(self, flows):
    while pathlib.Path(%r).exists():
        time.sleep(0.05)
    return classify(self, flows)
classifier.Classifier.classify = held
cli.main()
"""
"""The service, with an engine that stands still while a file exists."""


class Proxy:
    """Carries the bus; can cut every connection, or swallow the bytes of either direction without a word."""

    def __init__(self) -> None:
        self.swallow_up = self.swallow_down = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        await asyncio.start_server(self._carry, "127.0.0.1", PROXY)

    def cut(self) -> None:
        """End every connection at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            zeek_reader, zeek_writer = await asyncio.open_connection("127.0.0.1", BUS)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, zeek_writer}
        pumps = [
            asyncio.create_task(self._pump(reader, zeek_writer, lambda: self.swallow_up)),
            asyncio.create_task(self._pump(zeek_reader, writer, lambda: self.swallow_down)),
        ]
        self._tasks.update(pumps)
        with contextlib.suppress(asyncio.CancelledError):  # the end of the measurement
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, zeek_writer):
            end.transport.abort()
            self._writers.discard(end)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: Callable[[], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not swallow():
                    writer.write(data)
                    await writer.drain()


@dataclass
class Stage:
    """The processes of one scenario."""

    folder: Path
    checkpoint: list[str]
    proxy: Proxy
    zeek: subprocess.Popen[bytes] | None = None
    service: subprocess.Popen[bytes] | None = None
    peak_zeek_mb: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def stall_file(self) -> Path:
        """The engine stands still while it exists."""
        return self.folder / "stall"

    def start_zeek(self) -> None:
        """Zeek on the tap."""
        command = ["zeek", "-C", "-i", SENSOR_DEVICE, str(ROOT / "zeek/scripts"), "Tapline::stats_interval=1sec"]
        self.zeek = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start_service(self) -> None:
        """The service on the proxy."""
        command = [sys.executable, "-c", SERVICE % str(self.stall_file), "serve", "--port", str(API)]
        command += ["--zeek", f"ws://127.0.0.1:{PROXY}", "--live-queue-flows", str(LIVE_QUEUE_FLOWS), *self.checkpoint]
        command += ["--data-dir", str(self.folder / "data")]
        self.service = subprocess.Popen(command, cwd=ROOT, stderr=(self.folder / "service.log").open("a"))

    def end(self) -> None:
        """Stop what runs."""
        for process in (self.service, self.zeek):
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
                process.kill()

    def zeek_mb(self) -> float:
        """Zeek's resident memory."""
        assert self.zeek is not None
        try:
            text = Path(f"/proc/{self.zeek.pid}/status").read_text()
        except OSError:
            return 0.0
        size = next((line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")), "0")
        return int(size) / 1024


async def get(path: str = "/v1/live") -> Any:
    """A JSON answer of the service, None while it does not answer."""

    def fetch() -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{API}{path}", timeout=2) as answer:
            return json.load(answer)

    try:
        return await asyncio.to_thread(fetch)
    except (OSError, ValueError):
        return None


async def until_connected(stage: Stage) -> Any:
    """Wait until the service has its bus; keeps an eye on Zeek's memory."""
    for _ in range(1200):
        account = await get()
        stage.peak_zeek_mb = max(stage.peak_zeek_mb, stage.zeek_mb())
        if account and account["buses"][0]["connected"]:
            return account
        await asyncio.sleep(0.1)
    raise SystemExit("the service did not connect within two minutes")


async def until_receiving(stage: Stage, connections: int) -> None:
    """Wait until flows arrive on a connection made after the fault."""
    for _ in range(1200):
        account = await until_connected(stage)
        if account["buses"][0]["connections"] >= connections:
            before = account["counts"]["received"]
            await asyncio.sleep(0.2)
            later = await get()
            if later and later["counts"]["received"] > before:
                return
        await asyncio.sleep(0.05)
    raise SystemExit("no flows arrived after the fault")


async def kill_zeek(stage: Stage) -> int:
    """Zeek dies at once and is started again."""
    assert stage.zeek is not None
    stage.zeek.kill()
    stage.zeek.wait()
    stage.start_zeek()
    return 2


async def kill_service(stage: Stage) -> int:
    """The service dies at once and is started again."""
    assert stage.service is not None
    stage.service.kill()
    stage.service.wait()
    stage.start_service()
    return 1


async def cut(stage: Stage) -> int:
    """The connection is reset in both directions."""
    stage.proxy.cut()
    return 2


async def half_open(stage: Stage) -> int:
    """Nothing passes any more, and nobody is told; after 20 s the wire works again for new connections."""
    stage.proxy.swallow_up = stage.proxy.swallow_down = True
    await asyncio.sleep(20)
    stage.proxy.swallow_up = stage.proxy.swallow_down = False
    return 2


async def silent_down(stage: Stage) -> int:
    """What Zeek sends gets lost, what the service sends arrives."""
    stage.proxy.swallow_down = True
    await asyncio.sleep(20)
    stage.proxy.swallow_down = False
    return 2


async def silent_up(stage: Stage) -> int:
    """What the service sends gets lost, what Zeek sends arrives."""
    stage.proxy.swallow_up = True
    await asyncio.sleep(20)
    stage.proxy.swallow_up = False
    return 2


async def stalled_engine(stage: Stage) -> int:
    """The engine stands still for 30 s while the service goes on draining the bus."""
    before = stage.zeek_mb()
    stage.stall_file.touch()
    await watch_memory(stage, before)
    stage.stall_file.unlink()
    return 1


async def stopped_service(stage: Stage) -> int:
    """The whole service stands still for 30 s (SIGSTOP): Zeek cuts it off, and it comes back."""
    assert stage.service is not None
    before = stage.zeek_mb()
    stage.service.send_signal(signal.SIGSTOP)
    await watch_memory(stage, before)
    stage.service.send_signal(signal.SIGCONT)
    return 1


async def watch_memory(stage: Stage, before: float) -> None:
    """Wait, with an eye on Zeek's memory."""
    for _ in range(10 * STALL_SECONDS):
        await asyncio.sleep(0.1)
        stage.peak_zeek_mb = max(stage.peak_zeek_mb, stage.zeek_mb())
    stage.notes.append(f"Zeek's memory {before:.0f} MB before, at most {stage.peak_zeek_mb:.0f} MB")


SCENARIOS: dict[str, Callable[[Stage], Awaitable[int]]] = {
    function.__name__: function
    for function in (
        kill_zeek,
        kill_service,
        cut,
        half_open,
        silent_down,
        silent_up,
        stalled_engine,
        stopped_service,
    )
}


async def play(name: str, options: argparse.Namespace, capture: Path, proxy: Proxy) -> None:
    """One scenario from start to account."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ["--checkpoint", str(options.checkpoint)] if options.checkpoint else []
        stage = Stage(Path(folder), checkpoint, proxy)
        try:
            stage.start_zeek()
            stage.start_service()
            await until_connected(stage)
            sender = subprocess.Popen(
                replay_command(str(capture), f"--pps={options.pps}"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            await asyncio.sleep(FAULT_AFTER_SECONDS)
            fault_at = time.perf_counter()
            connections = await SCENARIOS[name](stage)
            injected_at = time.perf_counter()
            await until_receiving(stage, connections)
            recovered = time.perf_counter() - injected_at
            lasted = injected_at - fault_at
            sender.terminate()
            sender.wait()
            await settle()
            report(name, lasted, recovered, await get(), stage)
        finally:
            stage.end()


async def settle() -> None:
    """Wait until nothing waits for a verdict, Zeek has acknowledged all, and its counters have come."""
    for _ in range(300):
        account = await get()
        if account and not account["waiting"] and not account["buses"][0]["pending_verdicts"]:
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(3)


def report(name: str, lasted: float, recovered: float, account: Any, stage: Stage) -> None:
    """Both accounts side by side."""
    bus, counts = account["buses"][0], account["counts"]
    sensor = bus["sensors"][0]
    zeek = sensor["zeek"] or {}
    published = int(zeek.get("finals", 0) + zeek.get("early", 0))
    outcome = sum(counts[key] for key in ("delivered", "superseded", "shed", "skipped", "failed"))
    print(f"{name}: {SCENARIOS[name].__doc__}")
    print(
        f"  fault lasted {lasted:.1f} s; flows came again {recovered:.1f} s after it; {bus['connections']} connections"
    )
    print(f"  this Zeek published {published}; the service received {counts['received']}, missed {sensor['missed']} "
          f"by numbering, {sensor['restarts']} restarts")  # fmt: skip
    print(f"  {counts['delivered']} delivered + {counts['superseded']} superseded + {counts['shed']} shed + "
          f"{counts['skipped']} skipped + {counts['failed']} failed = {outcome}")  # fmt: skip
    print(f"  {bus['pending_verdicts']} verdicts still on their way to Zeek, {bus['refused']} events refused")
    for entry in account["shed_by_subject"][:3]:
        print(f"  shed of {entry['subject']}: {entry['flows']}")
    for note in stage.notes:
        print(f"  {note}")
    sys.stdout.flush()


async def inside(options: argparse.Namespace, capture: Path) -> None:
    """All scenarios, in the sensor's namespace."""
    proxy = Proxy()
    await proxy.start()
    for name in options.scenarios or SCENARIOS:
        proxy.swallow_up = proxy.swallow_down = False
        await play(name, options, capture, proxy)


def main() -> None:
    """Make the namespaces, run this script inside one of them, clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], default=[])
    parser.add_argument("--packets", type=int, default=200_000, help="packets of the capture to use")
    parser.add_argument("--pps", type=int, default=2000)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    if os.environ.get("FAULTS_INSIDE"):
        asyncio.run(inside(options, options.capture))
        return
    print(f"machine {describe()}; {options.capture.name}, {options.pps} packets/s")
    sys.stdout.flush()
    with namespaces(), tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.pcap"
        run("tcpdump", "-r", str(options.capture), "-c", str(options.packets), "-w", str(part))
        command = ["ip", "netns", "exec", SENSOR, sys.executable, __file__, str(part), *options.scenarios]
        command += ["--pps", str(options.pps)]
        if options.checkpoint:
            command += ["--checkpoint", str(options.checkpoint.resolve())]
        subprocess.run(command, check=True, env={**os.environ, "FAULTS_INSIDE": "1"}, timeout=1200)


if __name__ == "__main__":
    main()
