"""Runs a real `tapline serve` under the load and holds its account against what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.paths import ROOT
from tests.service.sources.bus.sensors import AcknowledgingSensor
from tests.soak.load import Load
from tests.soak.process import Sample, look

START_SECONDS = 180
"""The longest wait for the service to connect, on a machine that does much else."""

QUIET_SECONDS = 60
"""The longest wait for the service to finish what it has."""

WARM_SAMPLES = 100
"""Seconds after which memory is no longer that of a service that does everything for the first time."""

MAX_PEAK_MB = 600
MAX_GROWTH = 1.2
SLACK_MB = 40
"""Memory at the end may be so many times that of the first quarter, and so much more."""


@dataclass
class Report:
    """What to tell, and what of it is wrong."""

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, holds: bool, what: str) -> None:
        """Note a thing that must hold."""
        self.lines.append(f"{'ok   ' if holds else 'WRONG'} {what}")
        if not holds:
            self.wrong.append(what)


def soak(seconds: float, seed: int) -> Report:
    """Load one service for that time, with every fault, and look at it before, meanwhile and after."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_soak(seconds, seed, Path(folder)))


async def _soak(seconds: float, seed: int, folder: Path) -> Report:
    report = Report([f"seed {seed}, {seconds:.0f} s"])
    async with AcknowledgingSensor().running() as good, AcknowledgingSensor().running() as bad:
        api, state = _free_port(), folder / "state"
        with (folder / "log").open("w+") as log:
            process = subprocess.Popen(_command(api, state, [good.url, bad.url]), cwd=ROOT, stderr=log)
            try:
                load = Load(api, process.pid, state, random.Random(seed))
                async with asyncio.timeout(START_SECONDS):
                    await good.wait_for_client()
                    await bad.wait_for_client()
                before = look(process.pid)
                samples = await _under_load(load, good, bad, seconds)
                account = await _quiet(load)
                after = look(process.pid)
            finally:
                process.send_signal(signal.SIGTERM)
                status = await asyncio.to_thread(process.wait, 30)
            log.seek(0)
            errors = [line for line in log if "level=error" in line]
    _judge(report, load, account, before, samples, after)
    report.check(status == 0, f"it ended with status {status} on SIGTERM")
    report.check(not errors, f"{len(errors)} lines at level error{': ' + errors[0][:300] if errors else ''}")
    return report


def _command(api: int, state: Path, buses: list[str]) -> list[str]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "from tapline.service.command.cli import main; main()",
        "serve",
        "--port",
        str(api),
    ]
    return [
        *command, "--state-dir", str(state), "--data-dir", str(state / "data"),
        "--max-upload-mb", "8", "--max-body-mb", "2",
        *(word for url in buses for word in ("--zeek", url)),
    ]  # fmt: skip


async def _under_load(load: Load, good: AcknowledgingSensor, bad: AcknowledgingSensor, seconds: float) -> list[Sample]:
    jobs: list[Coroutine[Any, Any, None]] = [
        load.wrong_frames(bad), load.cuts([good, bad]), load.uploads(), load.uploads(), load.requests(),
        load.reloads(), load.kills(), load.full_disk(), load.health(),
    ]  # fmt: skip
    samples: list[Sample] = []

    async def watch() -> None:
        while True:
            samples.append(look(load.pid))
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(job) for job in (*jobs, watch())]
    try:
        await load.flows(good, seconds=seconds)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await load.last_flow(good)
    return samples


async def _quiet(load: Load) -> Any:
    """The account of the live path once nothing waits and no capture is being read."""
    async with load.client() as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS):
                while True:
                    account = (await client.get("/v1/live")).json()
                    pending = sum(bus["pending_verdicts"] for bus in account["buses"])
                    connected = all(bus["connected"] for bus in account["buses"])
                    if connected and not account["waiting"] and not pending and not look(load.pid).children:
                        break
                    await asyncio.sleep(0.2)
        ready = await client.get("/readyz")
    return {**account, "ready": ready.status_code == 200, "why": ready.text}


def _judge(report: Report, load: Load, account: Any, before: Sample, samples: list[Sample], after: Sample) -> None:
    counts, (good, bad) = account["counts"], account["buses"]
    (sensor,) = [each for each in good["sensors"] if each["name"] == "tap-a"]
    ended = sum(counts[name] for name in ("delivered", "superseded", "shed", "skipped", "failed"))
    report.lines += [f"{number:6} {what}" for what, number in sorted(load.injected.items())]
    report.lines.append(f"answers by status: {dict(sorted(load.statuses.items()))}")
    report.lines.append(f"slowest /healthz: {load.slowest_health_ms:.0f} ms")
    report.check(not load.unexpected, f"{len(load.unexpected)} unexpected answers: {load.unexpected[:3]}")
    report.check(account["ready"], f"ready at the end: {account['why']}")
    report.lines.append("memory in MB, tenths of the time: " + " ".join(f"{tenth:.0f}" for tenth in _tenths(samples)))
    report.check(
        sensor["flows"] + sensor["missed"] == load.sent,
        f"{sensor['flows']} flows of the sensor came + {sensor['missed']} counted as missed = {load.sent} sent",
    )
    report.check(counts["received"] == ended, f"{counts['received']} flows received = {ended} accounted for: {counts}")
    report.check(bad["refused"] > 0 and not bad["faults"], f"{bad['refused']} events refused, {bad['faults']} faults")
    deaths = {part["name"]: part["reason"] for part in account["parts"] if part["deaths"] or not part["running"]}
    report.check(not deaths, f"parts that died: {deaths}")
    report.check(after.children == 0, f"{after.children} processes left")
    report.check(after.descriptors <= before.descriptors + 4, f"descriptors {before.descriptors}, {after.descriptors}")
    report.check(after.threads <= before.threads + 12, f"threads {before.threads} before, {after.threads} after")
    quarter = max(1, len(samples) // 4)
    early = statistics.median(sample.rss_mb for sample in samples[quarter : 2 * quarter] or samples)
    late = statistics.median(sample.rss_mb for sample in samples[-quarter:])
    peak = max(sample.rss_mb for sample in samples)
    memory = (
        f"{before.rss_mb:.0f} MB before, {early:.0f} in the second quarter, {late:.0f} in the last, {peak:.0f} at most"
    )
    report.check(late <= early * MAX_GROWTH + SLACK_MB or len(samples) < WARM_SAMPLES, f"memory {memory}")
    report.check(peak <= MAX_PEAK_MB, f"memory at most {MAX_PEAK_MB} MB")


def _tenths(samples: list[Sample]) -> list[float]:
    """Median memory of each tenth of the time."""
    step = max(1, len(samples) // 10)
    return [statistics.median(each.rss_mb for each in samples[at : at + step]) for at in range(0, len(samples), step)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
