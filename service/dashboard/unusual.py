"""What is unusual now: new labels, ports that say something else, hosts that try many ports, suspicious hosts, more
unknown traffic than usual, models that see other things than they did, sensors that lose traffic."""

from __future__ import annotations

import time
from urllib.parse import urlencode

from markupsafe import Markup, escape

from tapline.models.verdict import UNKNOWN
from tapline.service.dashboard.board import Board, address
from tapline.service.dashboard.frame import Tone, link, toned
from tapline.service.dashboard.words import counted, percent, ports
from tapline.service.history.filters import FlowFilter, TraceFilter

NOW_SECONDS = 3600
"""What is new came within this time."""

PAST_SECONDS = 7 * 86_400
"""What is known was seen within this time before."""

SCAN_PORTS = 20
"""A host that tried so many ports, or hosts, in vain within the hour is shown."""

UNKNOWN_MIN_VERDICTS = 50
UNKNOWN_TIMES = 2.0
"""Unknown traffic is shown where its share is so many times what it was before."""

AT_MOST = 8


class Unusual:
    """The notes, as they were when somebody looked last."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.html = Markup('<p class="quiet">looking …</p>')

    async def look(self) -> None:
        """Look again.

        Raises:
            SlowQueryError: the history took too long.
        """
        notes = [*self._sensors(), *await self._suspicious(), *await self._ports(), *await self._scans()]
        notes += [*await self._labels(), *self._drift()]
        if not notes:
            self.html = Markup('<p class="quiet">nothing in the last hour</p>')
            return
        items = Markup("").join(Markup("<li>{}</li>").format(note) for note in notes)
        self.html = Markup('<ul class="notes">{}</ul>').format(items)

    def _sensors(self) -> list[Markup]:
        found = []
        for sensor in self._board.service.sensors.sensors:
            state = sensor.source.state
            if not state.connected:
                found.append(_note("alarm", "Sensor gone", escape(f"{state.url}: {state.reason or 'not connected'}")))
            for name, account in state.sensors.items():
                if account.stats is not None and account.stats.loss_percent > 1:
                    text = f"{name}: Zeek itself misses {account.stats.loss_percent:.1f} % of the traffic"
                    found.append(_note("caution", "Capture loss", escape(text)))
        return found

    def _drift(self) -> list[Markup]:
        found = []
        for drift in self._board.service.drift.newest.values():
            for each in drift.drifted:
                text = f"{drift.model}, against {each.against}: {each.reason}"
                found.append(_note("caution", "Drift", link(text, "/models")))
        return found

    async def _suspicious(self) -> list[Markup]:
        since = _ago_us(NOW_SECONDS)
        page = await self._board.history.traces(TraceFilter(since_us=since, suspicious=True), limit=AT_MOST)
        return [
            _note("alarm", "Suspicious host", link(
                f"{trace.subject}: {'unknown kind' if trace.verdict.unknown else trace.verdict.label}, "
                f"{percent(trace.suspicion)}",
                address("/trace", {"number": trace.number}),
            ))
            for trace in page.items
        ]  # fmt: skip

    async def _ports(self) -> list[Markup]:
        wanted = FlowFilter(since_us=_ago_us(NOW_SECONDS), unexpected_port=True, final=True)
        page = await self._board.history.flows(wanted, limit=AT_MOST)
        return [
            _note("alarm", "Unexpected port", link(
                f"{flow.verdict.label} on {flow.resp_h} port {flow.resp_p}/{flow.proto}, where "
                f"{flow.verdict.port_label} is usual, from {flow.orig_h}",
                address("/flow", {"number": flow.number}),
            ))
            for flow in page.items
        ]  # fmt: skip

    async def _scans(self) -> list[Markup]:
        found = await self._board.history.unclassified(_ago_us(NOW_SECONDS), limit=AT_MOST)
        return [
            _note("caution", "Tries in vain", link(
                f"{each.host} tried {counted(each.ports, 'port')} of {counted(each.peers, 'host')}"
                f"{' and more' if each.more else ''}: {ports(each.some_ports, each.ports > len(each.some_ports))}",
                f"/host?{urlencode({'host': each.host})}",
            ))
            for each in found if max(each.ports, each.peers) >= SCAN_PORTS
        ]  # fmt: skip

    async def _labels(self) -> list[Markup]:
        now = _ago_us(0)
        points = await self._board.history.series(_ago_us(PAST_SECONDS), now, 3600)
        recent: dict[str, int] = {}
        past: dict[str, int] = {}
        for point in points:
            into = recent if point.time_us >= _ago_us(NOW_SECONDS) else past
            into[point.name] = into.get(point.name, 0) + point.count
        if not past:
            return []
        found = [
            _note("caution", "New label", link(
                f"{label}: {counted(recent[label], 'flow')}, none in the seven days before",
                address("/flows", {"label": label}),
            ))
            for label in sorted(recent.keys() - past.keys() - {UNKNOWN})[:AT_MOST]
        ]  # fmt: skip
        share, before = _share(recent), _share(past)
        if sum(recent.values()) >= UNKNOWN_MIN_VERDICTS and share > UNKNOWN_TIMES * max(before, 0.01):
            text = f"{percent(share)} of the last hour's flows are unknown, {percent(before)} of those before"
            found.append(_note("caution", "Unknown traffic", link(text, address("/flows", {"label": UNKNOWN}))))
        return found


def _share(counts: dict[str, int]) -> float:
    total = sum(counts.values())
    return counts.get(UNKNOWN, 0) / total if total else 0.0


def _note(tone: Tone, kind: str, what: Markup) -> Markup:
    return Markup("{}: {}").format(toned(kind, tone), what)


def _ago_us(seconds: int) -> int:
    return round((time.time() - seconds) * 1e6)
