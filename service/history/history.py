"""The history of a service: takes what was decided without ever waiting, and answers what is asked of it."""

from __future__ import annotations

from pathlib import Path

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.history.filters import FlowFilter, TraceFilter
from tapline.service.history.past import (
    FlowSort,
    HistoryCounts,
    Hosts,
    Page,
    PastFlow,
    PastTrace,
    SeriesKind,
    SeriesName,
    SeriesPoint,
    Unclassified,
)
from tapline.service.metrics import Metrics
from tapline.service.traces.trace_verdict import TraceVerdict

MAX_PAGE = 1000
"""Most records of a page."""


class HistoryError(ValueError):
    """The history cannot be used as it was asked for; the message says why."""


class SlowQueryError(RuntimeError):
    """A question took longer than it may."""


class History:
    """Verdicts in a database. `flow` and `trace` make it an observer of the service; questions are answered in threads,
    each within `QUERY_SECONDS`.

    `problem` says why nothing is kept just now, or is None.
    """

    def __init__(
        self, place: str, data_dir: Path, metrics: Metrics, *, days: float, size_mb: int, content: bool = False
    ) -> None:
        """`place`: as of the setting `history`.

        Raises:
            HistoryError: the database cannot be opened, is not a history, or one of a newer version.
        """
        self.counts = HistoryCounts()
        self.problem: str | None = None

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Take a flow and its verdict, None where it could get none; an early verdict is replaced by the next."""
        raise NotImplementedError

    def trace(self, trace: TraceVerdict) -> None:
        """Take a verdict on a trace; that of an open window is replaced by the next of the same window and model."""
        raise NotImplementedError

    async def flows(
        self,
        wanted: FlowFilter = FlowFilter(),
        *,
        sort: FlowSort = "time",
        ascending: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[PastFlow]:
        """A page of flows.

        Raises:
            FilterError, SlowQueryError: the filter or the cursor cannot be understood; it took too long.
        """
        raise NotImplementedError

    async def traces(
        self,
        wanted: TraceFilter = TraceFilter(),
        *,
        ascending: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[PastTrace]:
        """A page of trace verdicts; raises as `flows`."""
        raise NotImplementedError

    async def flow_of(self, number: int) -> PastFlow | None:
        """A flow by its number; raises as `flows`."""
        raise NotImplementedError

    async def trace_of(self, number: int) -> PastTrace | None:
        """A trace verdict by its number; raises as `flows`."""
        raise NotImplementedError

    async def count_flows(self, wanted: FlowFilter = FlowFilter(), at_most: int = 10_000) -> int:
        """How many flows there are, counted no further than `at_most`; raises as `flows`."""
        raise NotImplementedError

    async def hosts(self, wanted: FlowFilter = FlowFilter(), *, limit: int = 100) -> Hosts:
        """The hosts that began flows; raises as `flows`."""
        raise NotImplementedError

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
        """Verdicts by time, in steps of whole minutes; raises as `flows`."""
        raise NotImplementedError

    async def unclassified(
        self, since_us: int | None = None, until_us: int | None = None, *, host: str | None = None, limit: int = 100
    ) -> list[Unclassified]:
        """The hosts with most flows that could get no verdict; `host`: an address or a network; raises as `flows`."""
        raise NotImplementedError
