"""Runs the week day by day, and holds what was kept and sent against what was published."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import re
import shlex
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.service.sources.bus.sensors import AcknowledgingSensor
from tests.soak.process import look
from tests.soak.run import Report
from tests.week.receivers import SyslogServer, WebhookServer, free_port, identity
from tests.week.service_process import OURS, ServiceProcess
from tests.week.traffic import LAST, Traffic

RULES = """
[[rule]]
name = "names-asked-for"
comment = "often enough that a day has many"
port = 53
stage = "final"
severity = "low"
suppress = { seconds = 0 }
"""

KILL_LOSES_SECONDS = 2.0
"""What was published so shortly before a process is killed may be lost with it: the docs say the last second."""

QUIET_SECONDS = 60


@dataclass
class Week:
    """The week's parts: who publishes, the service, who receives, and what was seen."""

    folder: Path
    traffic: Traffic
    service: ServiceProcess
    syslog: SyslogServer
    webhook: WebhookServer
    day_seconds: float
    outputs_since_day: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    memory_mb: list[float] = field(default_factory=list)

    @property
    def eve(self) -> Path:
        """The file that is written to."""
        return self.folder / "eve.json"

    async def live_day(self, day: int, *meanwhile: Any) -> None:
        """A day of traffic, and what happens in its middle."""
        publishing = asyncio.create_task(self.traffic.day(day, self.day_seconds))
        await asyncio.sleep(self.day_seconds / 3)
        for step in meanwhile:
            await step()
        await publishing

    async def settle(self) -> None:
        """Wait until nothing waits any more, and add up what the service's counters say was lost."""
        async with asyncio.timeout(QUIET_SECONDS):
            while True:
                account = await self.service.get("/v1/live")
                queued = sum((await self.service.metric("tapline_output_queue_records")).values())
                pending = sum(bus["pending_verdicts"] for bus in account["buses"])
                if not (account["waiting"] or queued or pending):
                    break
                await asyncio.sleep(0.1)
        assert self.service.process is not None
        self.memory_mb.append(look(self.service.process.pid).rss_mb)

    async def count_losses(self) -> None:
        """Add up what the counters of this process say was lost, before it ends."""
        account = await self.service.get("/v1/live")
        self.lost["shed"] += account["counts"]["shed"] + account["counts"]["failed"]
        self.lost["missed"] += sum(sensor["missed"] for bus in account["buses"] for sensor in bus["sensors"])
        for labels, number in (await self.service.metric("tapline_history_records_total")).items():
            if "shed" in labels:
                self.lost["history"] += round(number)
        for labels, number in (await self.service.metric("tapline_output_records_total")).items():
            output = labels.partition('output="')[2].partition(":")[0]
            if 'outcome="dropped"' in labels or 'outcome="failed"' in labels:
                self.lost[f"output {output}"] += round(number)

    async def rotate(self) -> None:
        """As logrotate does: move the file away, tell the service, and see that it goes on in a new one."""
        self.eve.rename(self.folder / f"eve.json.day{len(list(self.folder.glob('eve.json.day*')))}")
        self.service.hang_up()
        async with asyncio.timeout(QUIET_SECONDS):
            while not self.eve.exists():
                await asyncio.sleep(0.05)

    async def swap(self) -> None:
        """Load a flow model and a trace model again, under traffic."""
        async with self.service.client() as client:
            for name in ("flow-protocols", "iot-devices"):
                answer = await client.post(f"/v1/models/{name}/load")
                answer.raise_for_status()

    async def restart(self) -> None:
        """End it in order, and start it again."""
        await self.count_losses()
        await self.service.end()
        await self.service.start()
        await self.traffic.sensor.wait_for_client()

    async def kill(self) -> None:
        """Kill it, and start it again."""
        await self.count_losses()
        await self.service.end(signal.SIGKILL)
        await self.service.start()
        await self.traffic.sensor.wait_for_client()


def week(day_seconds: float, before: str | None, seed: int) -> Report:
    """The whole week, each day so many seconds; `before` is the command of an earlier version that serves on Monday."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_week(Path(folder), day_seconds, before, random.Random(seed)))


async def _week(folder: Path, day_seconds: float, before: str | None, chance: random.Random) -> Report:
    report = Report([f"seven days of {day_seconds:.0f} s"])
    (folder / "rules.toml").write_text(RULES)
    (folder / "secret").write_text("a secret of the webhook")
    (folder / "secret").chmod(0o600)
    async with AcknowledgingSensor().running() as sensor:
        syslog, webhook = SyslogServer(), WebhookServer()
        service = ServiceProcess(folder, free_port(), _options(folder, sensor.url))
        parts = Week(folder, Traffic(sensor, chance), service, syslog, webhook, day_seconds)
        try:
            async with _receivers(parts) as away:
                await _days(parts, away, before)
            await _judge(parts, report)
            await parts.service.end()
        finally:
            service.kill()
    report.check(service.ended[-1] == 0, f"processes ended with {service.ended}")
    return report


def _options(folder: Path, bus: str) -> list[str]:
    return ["--zeek", bus, "--data-dir", str(folder / "data"), "--state-dir", str(folder / "state")]


def _outputs(parts: Week) -> list[str]:
    hook = f"http://127.0.0.1:{parts.webhook.port}/hook?secret_file={parts.folder / 'secret'}"
    outputs = [
        f"eve:{parts.eve}?rotate_mb=1&keep=1000",
        f"syslog+tcp://127.0.0.1:{parts.syslog.port}?records=alerts",
        f"{hook}&records=alerts",
    ]
    alerts = ["--alerts", str(parts.folder / "rules.toml")]
    return [*alerts, *(word for output in outputs for word in ("--output", output))]


@contextlib.asynccontextmanager
async def _receivers(parts: Week) -> AsyncIterator[contextlib.ExitStack]:
    """Both receivers listen; closing the stack that is given lets them go away."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(parts.syslog.running())
        stack.enter_context(parts.webhook.running())
        yield stack


async def _days(parts: Week, receivers: contextlib.ExitStack, before: str | None) -> None:
    service, live = parts.service, parts.live_day
    options = list(service.options)
    if before is not None:
        service.command = shlex.split(before)
        await service.start()
        await parts.traffic.sensor.wait_for_client()
        await live(0)
        await parts.settle()
        await parts.count_losses()
        await service.end()  # Monday night: the upgrade
        service.command, parts.outputs_since_day = list(OURS), 1
    service.options = [*options, *_outputs(parts)]
    await service.start()
    await parts.traffic.sensor.wait_for_client()
    if before is None:
        await live(0)
    await live(1, parts.rotate, parts.rotate)
    await live(2, parts.swap)

    async def back() -> None:
        await asyncio.sleep(parts.day_seconds / 3)
        receivers.enter_context(parts.syslog.running())
        receivers.enter_context(parts.webhook.running())

    await asyncio.to_thread(receivers.close)
    await live(3, back)
    await live(4, parts.restart)
    await live(5, parts.kill)
    await live(6, parts.rotate, parts.swap)
    await parts.traffic.last()
    await parts.settle()
    await parts.count_losses()


async def _judge(parts: Week, report: Report) -> None:
    published, lost = parts.traffic.published, parts.lost
    heard = {uid for uid, at in published.items() if at is not None}
    around_kills = _near(parts, killed=True, before=KILL_LOSES_SECONDS)
    at_ends = _near(parts, killed=False, before=0)
    report.lines.append(
        f"{len(published)} flows published, {len(published) - len(heard)} while nobody was connected, "
        f"{len(around_kills)} within {KILL_LOSES_SECONDS:.0f} s of the kill, {len(at_ends)} while it was ending"
    )
    report.lines.append(f"counted as lost: {dict(+lost) or 'nothing'}")
    history = await _uids(parts.service)
    missing = heard - set(history)
    late = sum(map(int, re.findall(r"late_flows=(\d+)", parts.service.log_text())))
    report.lines.append(f"missing of the kill: {len(missing & around_kills)}")
    report.check(
        len(missing & at_ends) <= late, f"missing of ends: {len(missing & at_ends)}, {late} events came too late"
    )
    counted = lost["shed"] + lost["missed"] + lost["history"]
    unsaid = len(missing - around_kills - at_ends)
    report.check(unsaid <= counted, f"history: {len(history)} flows, {unsaid} missing, {counted} counted as lost")
    report.check(set(history) <= set(published), "the history holds nothing that was not published")
    report.check(max(Counter(history).values()) == 1, "no flow is twice in the history")
    records = list(_eve_records(parts.folder))
    flows = {each["tapline"]["uid"] for each in records if each["event_type"] == "flow"}
    expected = {uid for uid in history if uid == LAST or parts.outputs_since_day <= int(uid[1])}
    unsaid = len(expected - flows - around_kills)
    report.check(
        unsaid <= lost["output eve"], f"EVE: {len(flows)} flows, {unsaid} missing, {lost['output eve']} counted"
    )
    in_eve = {identity(each): each["tapline"]["uid"] for each in records if each["event_type"] == "alert"}
    kept = {alert["id"]: alert["uid"] async for alert in _pages(parts.service, "/v1/alerts", "alerts")}
    excused = {name for name, uid in {**kept, **in_eve}.items() if uid in around_kills}
    differ = in_eve.keys() ^ kept.keys()
    report.check(
        differ <= excused, f"the history holds {len(kept)} alerts, EVE {len(in_eve)}; {len(differ)} of the kill differ"
    )
    alerts = in_eve.keys()
    for name, received in (("syslog", parts.syslog.received), ("webhook", parts.webhook.received)):
        gone, twice = alerts - excused - set(received.alerts), sum(received.alerts.values()) - len(received.alerts)
        counted = lost[f"output {'http' if name == 'webhook' else 'syslog+tcp'}"]
        report.check(
            len(received.alerts) > 0 and len(gone) <= counted and not received.unreadable,
            f"{name}: {len(received.alerts)} alerts, {len(gone)} missing, {counted} counted, {twice} twice",
        )
    errors = [line for line in parts.service.log_text().splitlines() if "level=error" in line]
    report.check(not errors, f"{len(errors)} lines at level error{': ' + errors[0][:300] if errors else ''}")
    report.lines.append(f"memory at rest {' '.join(f'{mb:.0f}' for mb in parts.memory_mb)} MB")
    report.lines.append(f"{len(list(parts.folder.glob('eve*')))} EVE files")


def _near(parts: Week, *, killed: bool, before: float) -> set[str]:
    """The flows that were published so shortly before the service was told to end, or within two seconds after."""
    told = [asked for asked, was_killed in parts.service.ends if was_killed == killed]
    return {
        uid
        for uid, at in parts.traffic.published.items()
        if at is not None and any(asked - before <= at <= asked + 2 for asked in told)
    }


async def _pages(service: ServiceProcess, route: str, key: str) -> AsyncIterator[dict[str, Any]]:
    query: dict[str, Any] = {"limit": 1000}
    while True:
        page = await service.get(route, **query)
        for each in page[key]:
            yield each
        if not page["next"]:
            return
        query["cursor"] = page["next"]


async def _uids(service: ServiceProcess) -> list[str]:
    return [flow["uid"] async for flow in _pages(service, "/v1/flows", "flows")]


def _eve_records(folder: Path) -> Any:
    for path in sorted(folder.glob("eve*")):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line)
