"""`tapline watch`: sensors in, a live table out, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from datetime import UTC, datetime
from itertools import islice

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.command.console import Cleaned, make_console
from tapline.service.command.flow_rows import flow_rows
from tapline.service.command.trace_table import TraceTable, recent_traces
from tapline.service.live.observer import Observer
from tapline.service.live.pipeline import OPEN_FLOWS
from tapline.service.log_lines import silence_logs
from tapline.service.process.signals import stop_signals
from tapline.service.results.selection import FlowRow
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.packets.capture_error import CaptureError
from tapline.service.sources.zeek_process import ZeekError, ZeekOnInterface
from tapline.service.traces.live_traces import LiveTraces
from tapline.service.traces.trace_verdict import IMPORTANCE_NOTE, TraceVerdict

RECENT_VERDICTS = 200
"""Remembered; shown are as many as there is room for."""

FEWEST_VERDICTS = 4
RECENT_TRACES = 60
FEWEST_TRACES = 6
"""Traces shown, of the newest; a quarter of the lines where that is more."""

ENDED_TRACES = 50
"""Traces shown of the windows that were open when it ended."""

SHOWN_ALERTS = 2
"""The newest."""

MAX_SENSOR_ROWS = 6
TOP_LABELS = 10
REFRESH_SECONDS = 0.5
FIRST_FLOW_SECONDS = 0.05
"""How often a replay is looked at before its first flow."""


class View(Observer):
    """What the live table shows; told of every verdict."""

    def __init__(self) -> None:
        self.labels: Counter[str] = Counter()
        self.recent: deque[tuple[Flow, Verdict]] = deque(maxlen=RECENT_VERDICTS)
        self.traces: deque[TraceVerdict] = deque(maxlen=RECENT_TRACES)
        self.alerts: deque[Alert] = deque(maxlen=SHOWN_ALERTS)
        self.alerted = 0
        self.ending: TraceTable | None = None
        self._early: OrderedDict[str, str] = OrderedDict()
        self._last = (time.monotonic(), 0)

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Take a verdict; a final one replaces the early one of its flow."""
        if verdict is None:
            return
        replaced = self._early.pop(flow.uid, None)
        if replaced is not None:
            self.labels[replaced] -= 1
        if not verdict.final:
            self._early[flow.uid] = verdict.label
            if len(self._early) > OPEN_FLOWS:
                self._early.popitem(last=False)
        self.labels[verdict.label] += 1
        self.recent.append((flow, verdict))

    def trace(self, trace: TraceVerdict) -> None:
        """Take a verdict on a trace; once `end` was called it is one of a window that was open until then."""
        self.traces.append(trace)
        if self.ending is not None and trace.verdict.final:
            self.ending.add(trace)

    def alert(self, alert: Alert) -> None:
        """Take an alert."""
        self.alerts.append(alert)
        self.alerted += 1

    def end(self) -> None:
        """From now on remember the verdicts on traces, for the time after the table."""
        self.ending = TraceTable(ENDED_TRACES)

    def draw(self, service: Service, size: ConsoleDimensions) -> Group:
        """The table as it stands, on a terminal of this size: the flows have the lines that all else leaves them."""
        above: list[RenderableType] = [self._counts(service)]
        if service.sensors.sensors:
            above.append(self._sensors(service))
        above += [_ended(zeek) for zeek in service.zeeks if zeek.failure]
        if self.alerts:
            above.append(self._alerts())
        below: list[RenderableType] = []
        if service.traces is not None and service.traces.models:
            below.append(_trace_counts(service.traces, service.no_live_traces()))
        if self.traces:
            newest = islice(reversed(self.traces), max(FEWEST_TRACES, size.height // 4))
            below += [recent_traces(newest, size.width), Text(IMPORTANCE_NOTE, style="dim")]
        below.append(Text(_footer(service), style="dim"))
        left = size.height - sum(_lines(part, size.width) for part in (*above, *below))
        return Group(*above, self._verdicts(left, size.width), *below)

    def _counts(self, service: Service) -> Text:
        counts, pipeline = service.pipeline.counts, service.pipeline
        now = time.monotonic()
        then, before = self._last
        self._last = (now, counts.received)
        rate = (counts.received - before) / max(now - then, 1e-3)
        latencies = sorted(pipeline.latencies_seconds)
        spread = "-"
        if latencies:
            middle, late = (latencies[int(share * (len(latencies) - 1))] * 1000 for share in (0.5, 0.99))
            spread = f"median {middle:.0f} ms, p99 {late:.0f} ms"
        labels = ", ".join(f"{label} {count}" for label, count in self.labels.most_common(TOP_LABELS))
        return Text(
            f"flows {counts.flows}   {rate:.0f}/s   verdicts {counts.delivered}   waiting {pipeline.waiting_flows}   "
            f"shed {counts.shed}   failed {counts.failed}   latency {spread}\n{labels}"
        )

    def _alerts(self) -> Text:
        """The newest alerts, a line each."""
        found = Text(f"alerts {self.alerted}", no_wrap=True, overflow="ellipsis")
        for alert in reversed(self.alerts):
            at = datetime.fromtimestamp(alert.time_us / 1e6, UTC)
            style = "red" if alert.severity in ("high", "critical") else "yellow"
            found.append(f"\n{at:%H:%M:%S} {alert.severity} {alert.rule}: {alert.message}", style)
        return found

    def _sensors(self, service: Service) -> Table:
        """What came from each sensor, those that are away first; of many the first ones."""
        table = Table("sensor", "state", "flows", "missed", "refused", "Zeek dropped", "loss", box=None, pad_edge=False)
        buses = sorted((sensor.source.state for sensor in service.sensors.sensors), key=lambda bus: bus.connected)
        left = sum(max(1, len(bus.sensors)) for bus in buses)
        for bus in buses:
            state = Text(
                f"Zeek {bus.peer_version}" if bus.connected else bus.reason, style="" if bus.connected else "red"
            )
            for name, account in bus.sensors.items() or [(bus.url, None)]:
                if table.row_count == MAX_SENSOR_ROWS:
                    table.add_row(f"… and {left} more")
                    return table
                left -= 1
                stats = account.stats if account else None
                dropped = "-" if stats is None else str(stats.dropped)
                loss = "-" if stats is None or stats.loss_percent < 0 else f"{stats.loss_percent:.2f} %"
                flows, missed = (str(account.flows), str(account.missed)) if account else ("0", "0")
                table.add_row(Text(name), state, flows, missed, str(bus.malformed), dropped, loss)
        return table

    def _verdicts(self, lines: int, width: int) -> Table:
        """The newest verdicts in so many lines, and `FEWEST_VERDICTS` where that is no room at all."""
        rows = [FlowRow(flow, verdict) for flow, verdict in reversed(self.recent)][: max(lines - 1, FEWEST_VERDICTS)]
        table = flow_rows(rows, width, with_stage=True, boxed=False)
        while len(rows) > FEWEST_VERDICTS and (excess := _lines(table, width) - lines) > 0:
            rows = rows[: max(FEWEST_VERDICTS, len(rows) - (excess + 1) // 2)]  # a row has a line or two
            table = flow_rows(rows, width, with_stage=True, boxed=False)
        return table


def _lines(part: RenderableType, width: int) -> int:
    """Lines that a part takes on a terminal of so many columns."""
    return len(Console(width=width).render_lines(part, pad=False))


def _trace_counts(traces: LiveTraces, problem: str | None) -> Text:
    if problem:
        return Text(f"\nno traces: {problem}", style="yellow")
    lines = [
        f"traces by {name}: {model.open_windows} windows open, {model.open_flows} flows in them   "
        f"cut {counts.cut}   late {counts.late}   evicted {counts.closed_evicted}"
        for name, model in sorted(traces.models.items())
        for counts in (model.windows.counts,)
    ]
    return Text("\n" + "\n".join(lines))


def _ended(zeek: ZeekOnInterface) -> Text:
    if zeek.is_down:
        return Text(f"{zeek.failure}; starting it again", style="red")
    return Text(f"{zeek.failure}; it was started again", style="yellow")


def _footer(service: Service) -> str:
    replay = service.replay
    if replay is None or not replay.finished.is_set():
        logs = [str(zeek.folder) for zeek in service.zeeks if zeek.folder]
        return f"Zeek's logs: {', '.join(logs)}. Ctrl-C ends" if logs else "Ctrl-C ends"
    return f"{replay.capture}: {replay.problem or 'all of it was played'}. Ctrl-C ends"


def watch(settings: Settings) -> int:
    """Watch until Ctrl-C or SIGTERM; returns the exit status. A Zeek that ends once it has been there is started again.

    Raises:
        ZeekError, CheckpointError, EngineError, TransportError: it cannot start, nor can Zeek.
        CaptureError: the replay's capture gave nothing at all.
    """
    silence_logs()  # the table has the screen; it shows the same
    console = make_console()
    view = View()
    service = Service(settings, view)
    return asyncio.run(_watch(service, view, console))


async def _watch(service: Service, view: View, console: Console) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, stop.set)
    failure = None
    async with service.running():
        await _begun(service, stop)
        with Live(Cleaned(view.draw(service, console.size)), console=console, auto_refresh=False) as live:
            while not stop.is_set() and not failure:
                await _wait(stop, REFRESH_SECONDS)
                live.update(Cleaned(view.draw(service, console.size)), refresh=True)
                failure = _failure(service)
        view.end()  # leaving the block closes the windows that are open
    if not console.is_terminal:
        console.line()  # the table ends without one where it is not drawn on a terminal
    if view.ending is not None:
        view.ending.draw_rows(console, "Traces that were open")
    counts = service.pipeline.counts
    console.print(f"{counts.flows} flows, {counts.delivered} verdicts, {counts.shed} shed, {counts.failed} failed.")
    if failure:
        raise ZeekError(failure)
    return 0


def _failure(service: Service) -> str | None:
    """Why it makes no sense to go on: a Zeek ended that never came so far as to speak to us, or a part gave up."""
    connections = {sensor.source.state.url: sensor.source.state.connections for sensor in service.sensors.sensors}
    never = (zeek.failure for zeek in service.zeeks if zeek.failure and not connections.get(zeek.name))
    return next(never, service.supervisor.failure)


async def _begun(service: Service, stop: asyncio.Event) -> None:
    """Wait for a replay's first flow, so that no table is drawn of a capture that cannot be read.

    Raises:
        CaptureError: it cannot.
    """
    replay, counts = service.replay, service.pipeline.counts
    while replay is not None and not counts.received and not stop.is_set():
        if replay.finished.is_set():
            if replay.problem:
                raise CaptureError(f"{replay.capture}: {replay.problem}")
            return
        await _wait(stop, FIRST_FLOW_SECONDS)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
