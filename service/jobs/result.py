"""The result of one job: a file in the form of the history, so that its pages and filters are the history's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.history.database import Database
from tapline.service.history.filters import FlowFilter, TraceFilter
from tapline.service.history.history_tables import flows, traces
from tapline.service.history.pages import flow_page, trace_page
from tapline.service.history.past import FlowSort, Page, PastFlow, PastTrace
from tapline.service.history.rows import flow_row, past_flow, past_trace, trace_row
from tapline.service.jobs.job import ResultError
from tapline.service.jobs.job_store import remove_result
from tapline.service.results.records import Summary
from tapline.service.results.writers import RecordTaker
from tapline.service.traces.trace_verdict import TraceVerdict

QUESTION_SECONDS = 10.0
"""Longest time of a question."""

_BATCH_ROWS = 512
_PAGE_FLOWS = 256
_SAME_OF_FLOWS = sorted({*Flow.__struct_fields__} & {*PastFlow.__struct_fields__} - {"orig_bytes", "resp_bytes"})

_failed = sql.Table(
    "failed", sql.MetaData(), sql.Column("number", sql.Integer, primary_key=True), sql.Column("flow", sql.LargeBinary)
)
"""Flows on which the engine failed, which have no verdict and so no place in a history."""


class ResultWriter:
    """Takes what a job finds (`results.writers.Writer`). Until `keep` it is another file, and no result.

    Flows are seen when they end on the capture's own clock, which never goes back.
    """

    def __init__(self, path: Path) -> None:
        """`path`: of the result; nothing is written before `open`."""
        self._path = path
        self._part = path.with_suffix(".part")
        self._rows: list[dict[str, Any]] = []
        self._failed: list[dict[str, Any]] = []
        self._seen_us = 0
        self._database = Database(f"sqlite:///{self._part}", path.parent)

    def open(self) -> None:
        """Begin the file.

        Raises:
            ResultError: it cannot be written, as all that writes here.
        """
        remove_result(self._part)
        with self._writing():
            self._database.open()
            with self._database.engine.begin() as connection:
                _failed.create(connection)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Keep a flow of the input `name`, whole."""
        self._seen_us = max(self._seen_us, flow.start_us + flow.duration_us)
        if verdict is None:
            self._failed.append({"flow": msgspec.msgpack.encode(flow)})
        else:
            self._rows.append(flow_row(self._seen_us, name, flow, verdict, content=True))
        if len(self._rows) + len(self._failed) >= _BATCH_ROWS:
            self._write()

    def add_trace(self, trace: TraceVerdict) -> None:
        """Keep a trace."""
        with self._writing(), self._database.engine.begin() as connection:
            connection.execute(sql.insert(traces), [trace_row(trace.end_us, trace)])

    def finish(self, summary: Summary) -> None:
        """The summary is the job's."""

    def keep(self) -> None:
        """Make it the result, whole and on disk."""
        self._write()
        with self._writing():
            connection = self._database.engine.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute("PRAGMA journal_mode=DELETE")  # one file, which nobody writes to any more
                cursor.close()
            finally:
                connection.close()
            self._database.close()
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            self._part.rename(self._path)

    def close(self) -> None:
        """Forget what was not kept."""
        self._database.close()
        remove_result(self._part)

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        failed, self._failed = self._failed, []
        with self._writing(), self._database.engine.begin() as connection:
            for table, values in ((flows, rows), (_failed, failed)):
                if values:
                    connection.execute(sql.insert(table), values)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise ResultError(f"the result cannot be written: {error.orig}") from None


class Result:
    """Answers what is asked of a result; blocks."""

    def __init__(self, path: Path) -> None:
        self._place = f"sqlite:///{path}"
        self._folder = path.parent

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        database = Database(self._place, self._folder)
        try:
            with database.reading(QUESTION_SECONDS) as connection:
                yield connection
        finally:
            database.close()

    def flows(
        self, wanted: FlowFilter, sort: FlowSort, *, ascending: bool, limit: int, cursor: str | None
    ) -> Page[PastFlow]:
        """A page of flows; raises as of `history.pages.flow_page`."""
        with self._reading() as connection:
            return flow_page(connection, wanted, sort, ascending=ascending, limit=limit, cursor=cursor)

    def traces(self, wanted: TraceFilter, *, ascending: bool, limit: int, cursor: str | None) -> Page[PastTrace]:
        """A page of traces; raises as of `history.pages.trace_page`."""
        with self._reading() as connection:
            return trace_page(connection, wanted, ascending=ascending, limit=limit, cursor=cursor)

    def flow(self, number: int) -> PastFlow | None:
        """The flow of a number."""
        with self._reading() as connection:
            row = connection.execute(sql.select(flows).where(flows.c.number == number)).mappings().one_or_none()
            return past_flow(row) if row is not None else None

    def trace(self, number: int) -> PastTrace | None:
        """The trace of a number."""
        with self._reading() as connection:
            row = connection.execute(sql.select(traces).where(traces.c.number == number)).mappings().one_or_none()
            return past_trace(row) if row is not None else None

    def write(self, writer: RecordTaker, *, content: bool) -> Iterator[None]:
        """Give everything to a writer, in the order in which it was found; a step at a time. Content bytes are left
        out unless `content` says otherwise."""
        cursor: str | None = "0"
        while cursor is not None:
            page = self.flows(FlowFilter(), "time", ascending=True, limit=_PAGE_FLOWS, cursor=cursor)
            for past in page.items:
                writer.add(_flow(past, content=content), past.verdict, past.source)
            cursor = page.next
            yield
        with self._reading() as connection:
            failed = connection.execute(sql.select(_failed.c.flow).order_by(_failed.c.number)).scalars().all()
        for flow in failed:
            whole = msgspec.msgpack.decode(flow, type=Flow)
            writer.add(whole if content else msgspec.structs.replace(whole, orig_bytes=b"", resp_bytes=b""), None, "")
        cursor = "0"
        while cursor is not None:
            found = self.traces(TraceFilter(), ascending=True, limit=_PAGE_FLOWS, cursor=cursor)
            for trace in found.items:
                writer.add_trace(_trace(trace))
            cursor = found.next
            yield


def _flow(past: PastFlow, *, content: bool) -> Flow:
    return Flow(
        **{name: getattr(past, name) for name in _SAME_OF_FLOWS},
        orig_bytes=bytes.fromhex(past.orig_bytes) if content else b"",
        resp_bytes=bytes.fromhex(past.resp_bytes) if content else b"",
    )


def _trace(past: PastTrace) -> TraceVerdict:
    return TraceVerdict(**{name: getattr(past, name) for name in TraceVerdict.__struct_fields__})
