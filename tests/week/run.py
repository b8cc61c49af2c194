"""Runs the week day by day, and holds what was kept and sent against what was published."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
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
from tests.week.traffic import Traffic

RULES = """
[[rule]]
name = "names asked for"
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
            if 'outcome="written"' not in labels and 'outcome="queued"' not in labels:
                self.lost[f"output {labels}"] += round(number)

    async def rotate(self) -> None:
        """As logrotate does: move the file away, tell the service."""
        self.eve.rename(self.folder / f"eve.json.day{len(list(self.folder.glob('eve.json.day*')))}")
        self.service.hang_up()

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
        async with _receivers(parts) as away:
            await _days(parts, away, before)
        await _judge(parts, report)
        await parts.service.end()
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
        service.command = list(OURS)
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
    published = parts.traffic.published
    heard = {uid for uid, at in published.items() if at is not None}
    killed = [asked for asked, was_killed in parts.service.ends if was_killed]
    excused = {
        uid
        for uid, at in published.items()
        if at is not None and any(asked - KILL_LOSES_SECONDS <= at <= asked + KILL_LOSES_SECONDS for asked in killed)
    }
    ended = [asked for asked, was_killed in parts.service.ends if not was_killed]
    under_way = {
        uid for uid, at in published.items() if at is not None and any(asked <= at <= asked + 2 for asked in ended)
    }
    report.lines.append(
        f"{len(published)} flows published, {len(published) - len(heard)} while nobody was connected, "
        f"{len(excused)} around kills, {len(under_way)} while the service was ending"
    )
    report.lines.append(f"counted as lost: {dict(+parts.lost)}")
    history = await _history_uids(parts.service)
    lost = heard - set(history) - excused - under_way
    allowed = parts.lost["shed"] + parts.lost["missed"] + parts.lost["history"]
    report.check(len(lost) <= allowed, f"history: {len(history)} flows, {len(lost)} missing, {allowed} counted as lost")
    report.check(set(history) <= set(published), "history holds nothing that was not published")
    report.check(max(Counter(history).values()) == 1, "no flow is twice in the history")
    records = list(_eve_records(parts.folder))
    monday = {uid for uid in history if uid.startswith("d0")} if any(parts.service.command) else set()
    in_eve = Counter(each["tapline"]["uid"] for each in records if each["event_type"] == "flow")
    missing = set(history) - set(in_eve) - (monday if not any(uid.startswith("d0") for uid in in_eve) else set())
    dropped = sum(number for name, number in parts.lost.items() if name.startswith("output") and "eve" in name)
    report.check(
        len(missing - excused) <= dropped,
        f"EVE: {len(in_eve)} flows, {len(missing - excused)} missing, {dropped} counted",
    )
    alerts = Counter(identity(each) for each in records if each["event_type"] == "alert")
    for name, receiver in (("syslog", parts.syslog), ("webhook", parts.webhook)):
        got = receiver.received
        around = len(excused) + dropped
        report.check(got.unreadable == 0, f"{name}: {got.unreadable} messages that cannot be read")
        gone = set(alerts) - set(got.alerts)
        report.check(
            len(gone) <= around,
            f"{name}: {len(got.alerts)} alerts of {len(alerts)} in EVE, {len(gone)} missing, "
            f"{sum(got.alerts.values()) - len(got.alerts)} twice",
        )
        report.check(len(got.alerts) > 0, f"{name}: alerts came")
    errors = [line for line in parts.service.log_text().splitlines() if "level=error" in line]
    report.check(not errors, f"{len(errors)} lines at level error{': ' + errors[0][:300] if errors else ''}")
    report.lines.append(f"memory at rest {' '.join(f'{mb:.0f}' for mb in parts.memory_mb)} MB")
    report.lines.append(f"{len(list(parts.folder.glob('eve*')))} EVE files")


async def _history_uids(service: ServiceProcess) -> list[str]:
    found: list[str] = []
    query: dict[str, Any] = {"limit": 1000}
    while True:
        page = await service.get("/v1/flows", **query)
        found += [flow["uid"] for flow in page["flows"]]
        if not page.get("next"):
            return found
        query["cursor"] = page["next"]


def _eve_records(folder: Path) -> Any:
    for path in sorted(folder.glob("eve*")):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line)
