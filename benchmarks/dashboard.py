"""What open pages cost a verdict: latency with no page, with many, and with one that reads nothing.

    python benchmarks/dashboard.py CAPTURE [--speed 4] [--tabs 50] [--seconds 20]

`tapline serve` plays the capture through the live path; tabs are connections of the dashboard's own protocol to the
*Live* page, in a process of their own, that take every update. The slow one stops reading its socket. Latency is from
`tapline_live_seconds`, the difference over each stretch; service and tabs share the machine. Every stretch plays the
same capture from its beginning.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import urlencode

from hardware import describe, report
from websockets.asyncio.client import connect

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
WARM_SECONDS = 5.0


def main() -> None:
    """Measure the three stretches in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("capture", type=Path)
    parser.add_argument("--speed", type=float, default=4.0, help="of the replay")
    parser.add_argument("--tabs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--role", choices=["measure", "tabs", "slow"], default="measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role != "measure":
        asyncio.run(open_tabs(given.tabs, given.seconds + WARM_SECONDS, slow=given.role == "slow"))
        return
    print(describe())
    for name, role, tabs in (
        ("no page", "", 0),
        (f"{given.tabs} pages", "tabs", given.tabs),
        ("a slow page", "slow", 1),
    ):
        measure(name, role, tabs, given)


def measure(name: str, role: str, tabs: int, given: argparse.Namespace) -> None:
    """One stretch with a service of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("tapline")), "serve", "--port", str(PORT), "--replay"]
        command += [str(given.capture), "--speed", str(given.speed), "--data-dir", folder]
        service = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        visitors = None
        try:
            wait_ready()
            if role:
                own = [sys.executable, __file__, str(given.capture), "--role", role, "--tabs", str(tabs)]
                visitors = subprocess.Popen([*own, "--seconds", str(given.seconds)])
            time.sleep(WARM_SECONDS)
            before = buckets()
            time.sleep(given.seconds)
            after = buckets()
            if visitors is not None:
                visitors.wait(60)  # it says what it took
        finally:
            for process in filter(None, (visitors, service)):
                process.terminate()
                process.wait(30)
    counts = {edge: after[edge] - before.get(edge, 0) for edge in after}
    p50, p99 = quantile(counts, 0.5), quantile(counts, 0.99)
    flows = counts[float("inf")] / given.seconds
    report(f"verdicts beside {name}", f"{flows:.0f} flows/s, p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")


def wait_ready() -> None:
    """Until the service answers, for a minute at most."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{URL}/readyz", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not start")


def buckets() -> dict[float, float]:
    """The cumulative histogram of latency."""
    text = urllib.request.urlopen(f"{URL}/metrics", timeout=10).read().decode()
    found = re.findall(r'^tapline_live_seconds_bucket\{le="([^"]+)"\} (\S+)$', text, re.MULTILINE)
    return {float(edge.replace("+Inf", "inf")): float(count) for edge, count in found}


def quantile(counts: dict[float, float], share: float) -> float:
    """A quantile of a cumulative histogram, linear within its bucket."""
    wanted = share * counts[float("inf")]
    below, below_count = 0.0, 0.0
    for edge, count in sorted(counts.items()):
        if count >= wanted:
            inside = (wanted - below_count) / max(1.0, count - below_count)
            return below + inside * (edge - below) if edge != float("inf") else below
        below, below_count = edge, count
    return below


async def open_tabs(count: int, seconds: float, *, slow: bool) -> None:
    """Pages that stay open for a time."""
    updates = await asyncio.gather(*(open_tab(seconds, slow=slow) for _ in range(count)))
    print(f"{count} pages took {sum(updates)} updates")


async def open_tab(seconds: float, *, slow: bool) -> int:
    """One page: its HTML, then its connection; how many updates it took. A slow one reads nothing once it is open."""
    html = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{URL}/", timeout=30).read().decode())
    found = re.search(r"query: (\{[^}]*\})", html)
    assert found is not None
    query = ast.literal_eval(found[1]) | {"tab_id": uuid.uuid4(), "document_id": uuid.uuid4()}
    query |= {"EIO": 4, "transport": "websocket", "implicit_handshake": "true"}
    address = f"ws://127.0.0.1:{PORT}/_nicegui_ws/socket.io/?{urlencode(query)}"
    updates = 0
    async with connect(address, max_size=None, ping_interval=None, close_timeout=1) as socket:
        await socket.recv()
        await socket.send("40")
        if slow:
            socket.transport.pause_reading()
            await asyncio.sleep(seconds)
            return 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for message in socket:
                    if message == "2":  # a ping of the protocol
                        await socket.send("3")
                    updates += "update" in str(message[:40])
    return updates


if __name__ == "__main__":
    main()
