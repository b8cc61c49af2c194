"""Writers of classified flows and traces: JSON, NDJSON, CSV. Each streams: memory does not follow the input."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, TextIO

import msgspec

from tapline.models.flow import Flow
from tapline.models.foreign_text import sheet_cell
from tapline.models.server_name import server_name
from tapline.models.verdict import Verdict
from tapline.service.community_id import community_id
from tapline.service.results.records import Summary, classified
from tapline.service.results.spool import Spool
from tapline.service.traces.trace_verdict import TraceVerdict

Show = Literal["all", "flows", "traces"]
"""What to write. A CSV holds rows of one kind: of flows, unless it is traces alone."""

CSV_COLUMNS = (
    "input", "uid", "community_id", "start_us", "duration_us", "proto", "orig_h", "orig_p", "resp_h", "resp_p",
    "up", "down", "orig_ip_bytes", "resp_ip_bytes", "label", "nearest", "confidence", "unknown", "model", "version",
    "server_name", "port_label", "unexpected_port",
)  # fmt: skip
TRACE_CSV_COLUMNS = (
    "source", "subject_kind", "subject", "start_us", "end_us", "flows", "cut", "label", "nearest", "confidence",
    "unknown", "model", "version", "suspicion", "suspicious", "top_uids", "top_shares",
)  # fmt: skip


class RecordTaker(Protocol):
    """Takes classified flows and traces one by one."""

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write one classified flow of the input `name`."""
        ...

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write one classified trace."""
        ...


class Writer(RecordTaker, Protocol):
    """Takes the summary at the end, too."""

    def finish(self, summary: Summary) -> None:
        """Write what belongs at the end."""
        ...


class JsonWriter:
    """One JSON object: `flows` as they come, then `traces`, then `summary`; a list that is not shown is not there.

    Traces wait for their place on disk.
    """

    def __init__(self, file: TextIO, show: Show = "all") -> None:
        self._file = file
        self._show = show
        self._separator = '{"flows": [\n'
        self._trace_separator = b"\n"
        self._traces = Spool()

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's element."""
        self._file.write(self._separator + msgspec.json.encode(classified(flow, verdict, name)).decode())
        self._separator = ",\n"

    def add_trace(self, trace: TraceVerdict) -> None:
        """Keep the trace's element.

        Raises:
            OSError: there is no room for it; it is left out.
        """
        self._traces.add(self._trace_separator + msgspec.json.encode(trace))
        self._trace_separator = b",\n"

    def ending(self, summary: Summary) -> Iterator[str]:
        """What is left to write, in pieces: the flows' end, the traces, the summary."""
        if self._show == "traces":
            yield "{"
        else:
            yield (self._separator if self._separator.startswith("{") else "") + "\n], "
        if self._show != "flows":
            yield from self._trace_list()
        self.close()
        yield f'"summary": {msgspec.json.encode(summary).decode()}}}\n'

    def close(self) -> None:
        """Forget the traces that wait."""
        self._traces.close()

    def _trace_list(self) -> Iterator[str]:
        yield '"traces": ['
        whole = codecs.getincrementaldecoder("utf-8")()  # a piece may end within a letter
        for piece in self._traces.pieces():
            yield whole.decode(piece)
        yield "\n], "

    def finish(self, summary: Summary) -> None:
        """Close the list of flows, write traces and summary."""
        self._file.writelines(self.ending(summary))


class NdjsonWriter:
    """One flow a line, in the form of `tapline features` with its verdict; one trace a line, `{"trace": ...}`, when it
    is complete, at the latest after the last flow of its input. No summary."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's line."""
        self._line(classified(flow, verdict, name))

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace's line."""
        self._line({"trace": trace})

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""

    def _line(self, record: object) -> None:
        self._file.write(msgspec.json.encode(record).decode() + "\n")


class CsvWriter:
    """One row per flow with `CSV_COLUMNS`; no traces."""

    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file)
        self._rows.writerow(CSV_COLUMNS)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's row."""
        made = {"input": name, "community_id": community_id(flow), "server_name": server_name(flow)}
        self._rows.writerow(_cells(CSV_COLUMNS, verdict, flow, made))

    def add_trace(self, trace: TraceVerdict) -> None:
        """Leave the trace out."""

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""


class TraceCsvWriter:
    """One row per trace with `TRACE_CSV_COLUMNS`, its top flows and their shares with blanks between; no flows."""

    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file)
        self._rows.writerow(TRACE_CSV_COLUMNS)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Leave the flow out."""

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace's row."""
        *cells, _, _ = _cells(TRACE_CSV_COLUMNS, trace.verdict, trace)
        uids = sheet_cell(" ".join(flow.uid for flow in trace.top_flows))
        shares = " ".join(f"{flow.share:g}" for flow in trace.top_flows)
        self._rows.writerow([*cells, uids, shares])

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""


_OF_VERDICT = frozenset(Verdict.__struct_fields__)


def _cells(
    columns: tuple[str, ...], verdict: Verdict | None, record: object, made: Mapping[str, Any] = {}
) -> list[Any]:
    """The values of columns: those that are `made`, of the verdict, or else of the record that it is about."""
    found = (
        made[column] if column in made else getattr(verdict if column in _OF_VERDICT else record, column, "")
        for column in columns
    )
    return [sheet_cell(value) if isinstance(value, str) else "" if value is msgspec.UNSET else value for value in found]
