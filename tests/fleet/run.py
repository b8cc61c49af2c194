"""Runs a fleet, lets parts of it go down and come back, and holds the history against what was published."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.fleet.sensor_process import Publication
from tests.paths import ROOT
from tests.soak.run import Report
from tests.week.receivers import free_port
from tests.week.service_process import OURS, ServiceProcess

SHARDS = 2
SENSORS = 4
RATE = 20.0
RULES = """
[[rule]]
name = "messenger"
comment = "on a port that some of the recorded flows have"
port = 5222
severity = "low"
suppress = { seconds = 0 }
"""

KILL_LOSES_SECONDS = 2.5
"""What was published so shortly before a process is killed may be lost with it, or be counted as missed though it is
kept: the docs say a second, and this machine may be busy."""

CLOSING_SECONDS = 1.0
"""So long after a service was told to end, or killed, a sensor may believe that it still listens."""

WAIT_SECONDS = 120

Published = dict[str, list[Publication]]
"""By sensor."""


@dataclass
class SensorProcess:
    """One sensor after the other on the same port and under the same name."""

    number: int
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    ended: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it calls itself."""
        return f"tap-{self.number}"

    @property
    def ledger(self) -> Path:
        """What all its runs published."""
        return self.folder / f"{self.name}.jsonl"

    def start(self) -> None:
        """Start it; it publishes at once."""
        words = [self.name, str(self.port), str(self.ledger), "--number", str(self.number), "--rate", str(RATE)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fleet.sensor_process", *words, "--shards", str(SHARDS)], cwd=ROOT
        )

    async def end(self) -> None:
        """Let it publish its last flows and end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.ended.append(await asyncio.to_thread(self.process.wait, WAIT_SECONDS))

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def published(self) -> list[Publication]:
        """All its publications, in order."""
        lines = self.ledger.read_text().splitlines()
        return [msgspec.json.decode(line, type=Publication) for line in lines]


@dataclass
class Fleet:
    """Sensors, and a service for each shard."""

    folder: Path
    sensors: list[SensorProcess]
    services: list[ServiceProcess]

    async def until(self, condition: Any) -> None:
        """Wait until an awaitable condition holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not await condition():
                await asyncio.sleep(0.1)

    async def all_connected(self) -> bool:
        """Whether every service has every sensor."""
        accounts = [await service.get("/v1/live") for service in self.services]
        return all(bus["connected"] for account in accounts for bus in account["buses"])

    async def nothing_waits(self) -> bool:
        """Whether all that came is in the history."""
        accounts = [await service.get("/v1/live") for service in self.services]
        return not any(account["waiting"] or account["history"]["pending"] for account in accounts)


def fleet(folder: Path, history: str, seconds: float) -> Report:
    """A fleet on an empty database, each phase of its life so many seconds."""
    return asyncio.run(_fleet(folder, history, seconds))


async def _fleet(folder: Path, history: str, seconds: float) -> Report:
    report = Report()
    (folder / "rules.toml").write_text(RULES)
    sensors = [SensorProcess(number, free_port(), folder) for number in range(1, SENSORS + 1)]
    services = []
    for shard in range(SHARDS):
        own = folder / f"service-{shard}"
        own.mkdir()
        services.append(ServiceProcess(own, free_port(), _options(own, folder, history, shard, sensors)))
    parts = Fleet(folder, sensors, services)
    try:
        for sensor in sensors:
            sensor.start()
        await asyncio.gather(*(service.start() for service in services))  # both make the tables of one database
        await _life(parts, report, seconds)
        await _judge(parts, report)
        await _judge_pages(parts, report, history)
        await asyncio.gather(*(service.end() for service in services))
    finally:
        for part in (*services, *sensors):
            part.kill()
    report.check(
        [service.ended for service in services] == [[-signal.SIGKILL, 0], [0, 0]],
        f"services ended with {[service.ended for service in services]}",
    )
    return report


def _options(own: Path, folder: Path, history: str, shard: int, sensors: list[SensorProcess]) -> list[str]:
    buses = [word for sensor in sensors for word in ("--zeek", f"ws://127.0.0.1:{sensor.port}")]
    return [
        *buses, "--shards", str(shard), "--history", history, "--data-dir", str(own / "data"),
        "--state-dir", str(own / "state"), "--alerts", str(folder / "rules.toml"), "--threads", "1",
        "--live-deadline-seconds", "0",
    ]  # fmt: skip


async def _life(parts: Fleet, report: Report, seconds: float) -> None:
    first, second = parts.services
    await parts.until(parts.all_connected)
    await asyncio.sleep(seconds)
    await first.end(signal.SIGKILL)
    report.check(_health(first.port) == 1 and _health(second.port) == 0, "tapline health: one is down, one answers")
    await asyncio.sleep(seconds / 2)
    await first.start()
    await parts.until(parts.all_connected)
    await asyncio.sleep(seconds)
    await second.end()
    await second.start()
    await parts.until(parts.all_connected)
    await asyncio.sleep(seconds)
    await parts.sensors[2].end()
    await asyncio.sleep(seconds / 2)
    parts.sensors[2].start()
    await parts.until(parts.all_connected)
    await asyncio.sleep(seconds)
    await asyncio.gather(*(sensor.end() for sensor in parts.sensors))
    await parts.until(parts.nothing_waits)


async def _judge(parts: Fleet, report: Report) -> None:
    publications = {sensor.name: sensor.published() for sensor in parts.sensors}
    lives = [await service.get("/v1/live") for service in parts.services]
    near = [_near_end(service, shard, publications) for shard, service in enumerate(parts.services)]
    beyond = _judge_numbers(parts, report, publications, lives)
    kept = await _flows(parts.services[0])
    _judge_history(report, publications, kept, near, sum(beyond))
    late = sum(map(int, re.findall(r"late_flows=(\d+)", parts.services[1].log_text())))
    missing = set(_forms(publications)) - {flow["uid"] for flow in kept}
    at_end = len(missing & near[1] - _unheard(publications))
    report.check(
        at_end <= late + beyond[1], f"{at_end} missing of the end, {late} late, {beyond[1]} missed, as counted"
    )
    counted = sum(live["counts"]["shed"] + live["counts"]["failed"] for live in lives)
    refused = sum(bus["refused"] + bus["faults"] for live in lives for bus in live["buses"])
    report.check(not counted + refused, f"{counted} shed or failed, {refused} events refused")
    report.check(kept == await _flows(parts.services[1]), "both services tell the same flows")
    sensor = parts.sensors[3].name
    of_sensor = {flow["uid"] for flow in kept if flow["sensor"] == sensor}
    asked = {flow["uid"] async for flow in _pages(parts.services[0], "/v1/flows", "flows", sensor=sensor)}
    shards = {each.shard for each in publications[sensor] if each.uid in asked}
    report.check(
        asked == of_sensor and shards == set(range(SHARDS)), f"{len(asked)} flows of {sensor}, of shards {shards}"
    )
    recent = [live["history"]["recent_sensors"] for live in lives]
    of_both = Counter(flow["sensor"] for flow in kept)
    report.check(recent == [of_both] * SHARDS, f"/v1/live of both tells what both kept of each sensor: {dict(of_both)}")
    await _judge_alerts(parts, report, publications)
    report.check([_health(service.port) for service in parts.services] == [0, 0], "tapline health: both answer")
    for service in parts.services:
        errors = [line for line in service.log_text().splitlines() if "level=error" in line]
        report.check(not errors, f"{len(errors)} lines at level error{': ' + errors[0][:300] if errors else ''}")


def _judge_numbers(parts: Fleet, report: Report, publications: Published, lives: list[dict[str, Any]]) -> list[int]:
    """What the services counted as missed since they came back is what was published to nobody meanwhile; how many more
    each counted."""
    beyond = [0] * SHARDS
    for shard, (service, live) in enumerate(zip(parts.services, lives, strict=True)):
        asked, killed = service.ends[0]
        accounts = {each["name"]: each for bus in live["buses"] for each in bus["sensors"]}
        report.check(set(accounts) == set(publications), f"shard {shard}: sensors {sorted(accounts)}")
        for name, account in accounts.items():
            of_shard = [each for each in publications[name] if each.shard == shard]
            missed, restarts = account["missed"], account["restarts"]
            unheard = sum(not each.heard and each.at > asked for each in of_shard)  # of a restarted sensor, too
            before = KILL_LOSES_SECONDS if killed else 0
            closing = sum(each.heard and asked - before <= each.at <= asked + CLOSING_SECONDS for each in of_shard)
            report.check(
                unheard <= missed <= unheard + closing,
                f"shard {shard}, {name}: {len(of_shard)} published, {unheard} of them to nobody since the "
                f"{'kill' if killed else 'end'}, {closing} about that time; {missed} counted as missed",
            )
            runs = sum(each.seq == 1 for each in of_shard)
            report.check(restarts == runs - 1, f"shard {shard}, {name}: {runs} runs, {restarts} restarts counted")
            beyond[shard] += missed - unheard
    return beyond


def _judge_history(
    report: Report, publications: Published, kept: list[dict[str, Any]], near: list[set[str]], counted: int
) -> None:
    history, forms, unheard = Counter(flow["uid"] for flow in kept), _forms(publications), _unheard(publications)
    report.lines.append(
        f"{len(forms)} flows in {sum(map(len, forms.values()))} publications, {len(unheard)} to nobody; "
        f"{len(history)} in the history"
    )
    report.check(max(history.values()) == 1, "no flow is twice in the history")
    report.check(not set(history) & unheard and set(history) <= set(forms), "nothing in it that nobody heard of")
    missing = set(forms) - set(history) - unheard
    others = missing - near[0] - near[1]  # of a sensor that was told late that its service is gone
    report.check(
        len(others) <= counted, f"{len(missing)} missing, {len(missing & near[0])} of the kill, {len(others)} counted"
    )


def _forms(publications: Published) -> dict[str, list[Publication]]:
    """All publications of each flow."""
    forms: dict[str, list[Publication]] = {}
    for each in (each for all_of_one in publications.values() for each in all_of_one):
        forms.setdefault(each.uid, []).append(each)
    return forms


def _unheard(publications: Published) -> set[str]:
    """The flows of which nobody ever heard."""
    return {uid for uid, forms in _forms(publications).items() if not any(each.heard for each in forms)}


async def _judge_alerts(parts: Fleet, report: Report, publications: Published) -> None:
    """Alerts of either service are told by both, and one that was seen to on one is so on the other."""
    first, second = parts.services
    on_first = [alert async for alert in _pages(first, "/v1/alerts", "alerts")]
    on_second = [alert async for alert in _pages(second, "/v1/alerts", "alerts")]
    shards = {each.uid: each.shard for all_of_one in publications.values() for each in all_of_one}
    by_shard = Counter(shards[alert["uid"]] for alert in on_first)
    report.check(on_first == on_second and len(by_shard) == SHARDS, f"alerts by shard on both: {dict(by_shard)}")
    chosen = next(alert for alert in on_first if shards[alert["uid"]] == 1)["id"]
    async with first.client() as client:
        answer = await client.post(f"/v1/alerts/{chosen}/acknowledge")
    report.check(answer.status_code == 204, "an alert of the second service is seen to on the first")

    async def is_seen_to() -> bool:
        found = await second.get("/v1/alerts", acknowledged=True)
        return [alert["id"] for alert in found["alerts"]] == [chosen]

    with contextlib.suppress(TimeoutError):
        await parts.until(is_seen_to)
    report.check(await is_seen_to(), "the second tells that it is")


async def _judge_pages(parts: Fleet, report: Report, history: str) -> None:
    """The pages of a service without sensors show the flows of both."""
    own = parts.folder / "pages"
    own.mkdir()
    options = ["--history", history, "--data-dir", str(own / "data"), "--traces", "none", "--dashboard", "on"]
    pages = ServiceProcess(own, free_port(), options)
    shards = {each.uid: each.shard for sensor in parts.sensors for each in sensor.published()}
    try:
        await pages.start()
        chosen = {shards[flow["uid"]]: flow for flow in await _flows(parts.services[0])}
        async with pages.client() as client:
            for shard, flow in sorted(chosen.items()):
                shown = (await client.get("/flows", params={"uid": flow["uid"]})).text
                other = chosen[1 - shard]["orig_h"]
                report.check(
                    flow["orig_h"] in shown and other not in shown, f"the page of flows shows one of shard {shard}"
                )
        await pages.end()
        report.check(pages.ended == [0], f"the service of the pages ended with {pages.ended}")
    finally:
        pages.kill()


def _near_end(service: ServiceProcess, shard: int, publications: Published) -> set[str]:
    """The flows of a shard with a form that was published about the time when its service was killed or told to end."""
    asked, killed = service.ends[0]
    before = KILL_LOSES_SECONDS if killed else 0
    every = (each for all_of_one in publications.values() for each in all_of_one if each.shard == shard)
    return {each.uid for each in every if asked - before <= each.at <= asked + CLOSING_SECONDS}


def _health(port: int) -> int:
    """The status of `tapline health` on a machine whose service has this port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAPLINE_")}
    environment |= {"TAPLINE_CONFIG": "none", "TAPLINE_PORT": str(port)}
    words = [*OURS, "health"]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=60).returncode


async def _pages(service: ServiceProcess, route: str, key: str, **query: Any) -> AsyncIterator[dict[str, Any]]:
    query = {"limit": 1000, **query}
    while True:
        page = await service.get(route, **query)
        for each in page[key]:
            yield each
        if not page["next"]:
            return
        query["cursor"] = page["next"]


async def _flows(service: ServiceProcess) -> list[dict[str, Any]]:
    return [flow async for flow in _pages(service, "/v1/flows", "flows")]
