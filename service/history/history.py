"""The history of a service: takes what was decided without ever waiting, and answers what is asked of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert, Severity
from tapline.service.history import pages, sums
from tapline.service.history.batch_writing import Acknowledged, SeenAlert, SeenFlow, SeenTrace
from tapline.service.history.database import Database
from tapline.service.history.filters import AlertFilter, FlowFilter, TraceFilter
from tapline.service.history.history_errors import HistoryBusyError, SlowQueryError
from tapline.service.history.history_tables import alerts, flows, traces
from tapline.service.history.history_writer import HistoryWriter
from tapline.service.history.past import (
    MAX_PAGE,
    FlowSort,
    HistoryCounts,
    Hosts,
    Page,
    PastAlert,
    PastFlow,
    PastTrace,
    SeriesKind,
    SeriesName,
    SeriesPoint,
    Unclassified,
)
from tapline.service.history.retention import Retention
from tapline.service.history.rows import past_alert, past_flow, past_trace, text
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.traces.trace_verdict import TraceVerdict

QUERY_SECONDS = 5.0
"""Longest time of a question, its waiting for a thread included."""

READERS = 4
"""Questions that are answered at a time."""

MAX_ASKED = 64
"""Questions that may wait for a thread, or be answered; one more is told to come again."""

RECENT_SECONDS = 600
"""What `recent_sensors` looks at."""

_ANY_FLOW, _ANY_TRACE, _ANY_ALERT = FlowFilter(), TraceFilter(), AlertFilter()
_T = TypeVar("_T")


class History:
    """Verdicts and alerts in a database. `flow`, `trace` and `alert` make it an observer of the service, in one event
    loop; they never wait. Questions are answered in threads, each within `QUERY_SECONDS`: a slow one holds nobody up.

    `run` writes, under a supervisor, until it is cancelled; `stop` then writes what waits. All questions raise
    `FilterError` where a filter or a cursor cannot be understood, `SlowQueryError` where they take too long and
    `HistoryBusyError` where the database cannot answer.
    """

    def __init__(
        self, place: str, data_dir: Path, metrics: Metrics, *, days: float, size_mb: int, content: bool = False
    ) -> None:
        """`place`: as of the setting `history`. A database that cannot be asked just now is tried again later.

        Raises:
            HistoryError: it can never be used: it is not a history, or one of another version.
        """
        self._database = Database(place, data_dir)
        is_open, problem = True, None
        try:
            self._database.open()
        except DBAPIError as error:
            is_open, problem = False, f"the history cannot be opened: {error.orig}"
            log.error("the history cannot be opened", place=self.place, error=str(error.orig))
        retention = Retention(self._database, days, size_mb << 20)
        self._writer = HistoryWriter(self._database, retention, metrics, is_open=is_open, content=content)
        self._writer.problem = problem
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="history writer")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="history reader")
        self._asked = 0

    @property
    def place(self) -> str:
        """The URL of its database, without a password."""
        return self._database.shown

    @property
    def counts(self) -> HistoryCounts:
        """What became of what it was given."""
        return self._writer.counts

    @property
    def problem(self) -> str | None:
        """Why nothing can be kept now, or None."""
        return self._writer.problem

    @property
    def used_bytes(self) -> int:
        """Size of the database, as it was measured last."""
        return self._writer.used_bytes

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        work = asyncio.get_running_loop().run_in_executor(self._writing, self._writer.run)
        await asyncio.shield(work)

    async def stop(self, limit_seconds: float) -> None:
        """Write what waits, within a limit, and close. Nothing may be given or asked any more."""
        self._writer.stop(limit_seconds)
        await asyncio.get_running_loop().run_in_executor(self._writing, self._writer.run)  # where it did not run
        await asyncio.to_thread(self._writing.shutdown)
        await asyncio.to_thread(self._reading.shutdown, cancel_futures=True)
        self._database.close()

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Take a flow and its verdict, None where it could get none; an early verdict is replaced by the next."""
        if verdict is not None or flow.complete:  # one without may get its verdict yet
            self._writer.put(SeenFlow(time.time_ns() // 1000, source, flow, verdict))

    def trace(self, trace: TraceVerdict) -> None:
        """Take a verdict on a trace; that of an open window is replaced by the next of the same window and model."""
        self._writer.put(SeenTrace(time.time_ns() // 1000, trace))

    def alert(self, alert: Alert) -> None:
        """Take an alert."""
        self._writer.put(SeenAlert(time.time_ns() // 1000, alert))

    async def acknowledge(self, identifier: str, by: str) -> bool:
        """Note that somebody has seen to an alert, with the key of this name; who does so first stays. False where
        there is none of this identifier, or no more."""
        query = sql.select(alerts.c.number).where(alerts.c.id == text(identifier)).limit(1)
        if await self._ask(lambda connection: connection.execute(query).scalar()) is None:
            return False
        self._writer.put(Acknowledged(time.time_ns() // 1000, identifier, clean(by)))
        return True

    async def flows(
        self,
        wanted: FlowFilter = _ANY_FLOW,
        *,
        sort: FlowSort = "time",
        ascending: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[PastFlow]:
        """A page of flows, newest first where nothing else is asked."""
        limit = min(limit, MAX_PAGE)
        return await self._ask(
            lambda connection: pages.flow_page(
                connection, wanted, sort, ascending=ascending, limit=limit, cursor=cursor
            )
        )

    async def traces(
        self,
        wanted: TraceFilter = _ANY_TRACE,
        *,
        ascending: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[PastTrace]:
        """A page of trace verdicts, newest first where nothing else is asked."""
        limit = min(limit, MAX_PAGE)
        return await self._ask(
            lambda connection: pages.trace_page(connection, wanted, ascending=ascending, limit=limit, cursor=cursor)
        )

    async def alerts(
        self,
        wanted: AlertFilter = _ANY_ALERT,
        *,
        ascending: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[PastAlert]:
        """A page of alerts, newest first where nothing else is asked."""
        limit = min(limit, MAX_PAGE)
        return await self._ask(
            lambda connection: pages.alert_page(
                connection, wanted, self._database.columns(alerts), ascending=ascending, limit=limit, cursor=cursor
            )
        )

    async def alert_of(self, number: int) -> PastAlert | None:
        """An alert by its number, None where there is none, or no more."""
        query = sql.select(*self._database.columns(alerts)).where(alerts.c.number == number)
        row = await self._ask(lambda connection: connection.execute(query).mappings().one_or_none())
        return past_alert(row) if row is not None else None

    async def alert_counts(self, wanted: AlertFilter = _ANY_ALERT) -> dict[Severity, int]:
        """How many alerts there are, by severity."""
        return await self._ask(lambda connection: pages.alert_counts(connection, wanted))

    async def flow_of(self, number: int) -> PastFlow | None:
        """A flow by its number, None where there is none, or no more."""
        query = sql.select(flows).where(flows.c.number == number)
        row = await self._ask(lambda connection: connection.execute(query).mappings().one_or_none())
        return past_flow(row) if row is not None else None

    async def trace_of(self, number: int) -> PastTrace | None:
        """A trace verdict by its number, None where there is none, or no more."""
        query = sql.select(traces).where(traces.c.number == number)
        row = await self._ask(lambda connection: connection.execute(query).mappings().one_or_none())
        return past_trace(row) if row is not None else None

    async def count_flows(self, wanted: FlowFilter = _ANY_FLOW, at_most: int = 10_000) -> int:
        """How many flows there are, counted no further than `at_most`."""
        return await self._ask(lambda connection: pages.count_flows(connection, wanted, at_most))

    async def hosts(self, wanted: FlowFilter = _ANY_FLOW, *, limit: int = 100) -> Hosts:
        """The hosts that began flows, of the newest `HOST_FLOWS` flows."""
        return await self._ask(lambda connection: sums.hosts(connection, wanted, min(limit, MAX_PAGE)))

    async def series(
        self,
        since_us: int,
        until_us: int,
        step_seconds: int,
        *,
        by: SeriesName = "label",
        kind: SeriesKind = "flow",
        sensor: str | None = None,
        model: str | None = None,
    ) -> list[SeriesPoint]:
        """Verdicts by time, in steps of whole minutes; each flow and each window counts once."""
        return await self._ask(
            lambda connection: sums.series(
                connection, since_us, until_us, step_seconds, by, kind, sensor=sensor, model=model
            )
        )

    async def recent_sensors(self) -> dict[str, int]:
        """Verdicts on flows of the last ten minutes by sensor, of all services that share the database; flows of a
        replay are of none."""
        now_us = time.time_ns() // 1000
        found: Counter[str] = Counter()
        for point in await self.series(now_us - RECENT_SECONDS * 1_000_000, now_us, 60, by="sensor"):
            if point.name:
                found[point.name] += point.count
        return dict(found)

    async def unclassified(
        self, since_us: int | None = None, until_us: int | None = None, *, host: str | None = None, limit: int = 100
    ) -> list[Unclassified]:
        """The hosts with most flows that could get no verdict; `host`: an address or a network."""
        limit = min(limit, MAX_PAGE)
        return await self._ask(lambda connection: sums.unclassified(connection, since_us, until_us, host, limit))

    async def _ask(self, question: Callable[[sql.Connection], _T]) -> _T:
        """Answer a question in a thread."""
        if self._asked >= MAX_ASKED:
            raise HistoryBusyError(f"{self._asked} questions wait for the history: come again")
        until = time.monotonic() + QUERY_SECONDS
        self._asked += 1
        work = asyncio.get_running_loop().run_in_executor(self._reading, self._answer, question, until)
        work.add_done_callback(self._answered)
        return await asyncio.shield(work)

    def _answered(self, work: asyncio.Future[Any]) -> None:
        self._asked -= 1
        if not work.cancelled():
            work.exception()  # it was raised where somebody still waited

    def _answer(self, question: Callable[[sql.Connection], _T], until: float) -> _T:
        left_seconds = until - time.monotonic()
        if left_seconds <= 0:
            raise SlowQueryError("others' questions took all the time: come again")
        try:
            with self._database.reading(left_seconds) as connection:
                return question(connection)
        except DBAPIError as error:
            log.error("the history cannot answer", place=self.place, error=str(error.orig))
            raise HistoryBusyError("the history cannot answer now: its database does not") from error
