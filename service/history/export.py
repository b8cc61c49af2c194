"""The history as a file: flows, traces or alerts as rows of CSV or Parquet, in the order of time, in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

import msgspec

from tapline.models.foreign_text import sheet_cell
from tapline.models.verdict import Verdict
from tapline.service.history.database import Database
from tapline.service.history.filters import AlertFilter, FlowFilter, TraceFilter
from tapline.service.history.history_tables import alerts
from tapline.service.history.pages import alert_page, flow_page, trace_page
from tapline.service.history.past import MAX_PAGE, Page, PastAlert, PastFlow, PastTrace

PAGE_SECONDS = 600.0
"""Longest time that a page of an export may take to be read."""

FLOW_COLUMNS = (
    "number", "seen_us", "source", "sensor", "uid", "community_id", "start_us", "duration_us", "proto", "orig_h",
    "orig_p", "resp_h", "resp_p", "up", "down", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "service",
    "conn_state", "server_name", "label", "nearest", "confidence", "unknown", "alternatives", "model", "version",
    "final", "port_label", "unexpected_port", "payload_lengths", "orig_bytes", "resp_bytes",
)  # fmt: skip
TRACE_COLUMNS = (
    "number", "seen_us", "source", "subject_kind", "subject", "start_us", "end_us", "flows", "cut", "label", "nearest",
    "confidence", "unknown", "alternatives", "model", "version", "final", "suspicion", "suspicious", "top_flows",
)  # fmt: skip
ALERT_COLUMNS = (
    "number", "seen_us", "acknowledged_us", "acknowledged_by", "id", "time_us", "rule", "severity", "kind", "message",
    "model", "version", "suppressed", "source", "sensor", "label", "nearest", "confidence", "unknown", "final",
    "start_us", "end_us", "uid", "community_id", "proto", "orig_h", "orig_p", "resp_h", "resp_p", "server_name",
    "port_label", "unexpected_port", "subject", "subject_kind", "flows", "suspicion", "suspicious", "top_uids",
    "matches", "reason",
)  # fmt: skip

_TYPES = {
    "number": "int64", "seen_us": "int64", "start_us": "int64", "duration_us": "int64", "end_us": "int64",
    "orig_p": "uint16", "resp_p": "uint16", "up": "int64", "down": "int64", "orig_pkts": "int64", "resp_pkts": "int64",
    "orig_ip_bytes": "int64", "resp_ip_bytes": "int64", "flows": "int64", "cut": "int64", "confidence": "float64",
    "suspicion": "float64", "unknown": "bool", "final": "bool", "unexpected_port": "bool", "suspicious": "bool",
    "payload_lengths": "lengths", "acknowledged_us": "int64", "time_us": "int64", "suppressed": "int64",
    "matches": "int64", "top_uids": "texts",
}  # fmt: skip
"""Of columns that are no text."""

ROWS_IN_A_GROUP = 20_000

Kind = Literal["flows", "traces", "alerts"]
Filter = FlowFilter | TraceFilter | AlertFilter
Row = dict[str, Any]


class ExportError(RuntimeError):
    """The file cannot be written as asked; the message says why."""


def columns_of(kind: Kind, content: bool) -> tuple[str, ...]:
    """The columns of an export."""
    if kind != "flows":
        return TRACE_COLUMNS if kind == "traces" else ALERT_COLUMNS
    return FLOW_COLUMNS if content else FLOW_COLUMNS[:-2]


def rows(database: Database, wanted: Filter) -> Iterator[Row]:
    """As `records`, as rows of a table."""
    return map(_row, records(database, wanted))


@overload
def records(database: Database, wanted: FlowFilter) -> Iterator[PastFlow]: ...
@overload
def records(database: Database, wanted: TraceFilter) -> Iterator[PastTrace]: ...
@overload
def records(database: Database, wanted: AlertFilter) -> Iterator[PastAlert]: ...


def records(database: Database, wanted: Filter) -> Iterator[PastFlow | PastTrace | PastAlert]:
    """What a filter asks for, oldest first; page by page, so that no long question holds the database.

    Raises:
        FilterError, SlowQueryError: as of `flow_page`.
    """
    cursor = None
    while True:
        with database.reading(PAGE_SECONDS) as connection:
            page: Page[PastFlow] | Page[PastTrace] | Page[PastAlert]
            if isinstance(wanted, FlowFilter):
                page = flow_page(connection, wanted, "time", ascending=True, limit=MAX_PAGE, cursor=cursor)
            elif isinstance(wanted, TraceFilter):
                page = trace_page(connection, wanted, ascending=True, limit=MAX_PAGE, cursor=cursor)
            else:
                columns = database.columns(alerts)
                page = alert_page(connection, wanted, columns, ascending=True, limit=MAX_PAGE, cursor=cursor)
        yield from page.items
        if page.next is None:
            return
        cursor = page.next


def write(path: Path, kind: Kind, found: Iterator[Row], *, content: bool) -> int:
    """Write rows to a file, as Parquet where its name ends so, else as CSV; gives how many.

    Raises:
        ExportError: there is no pyarrow for Parquet.
        OSError: the file cannot be written.
    """
    columns = columns_of(kind, content)
    return (_write_parquet if path.suffix == ".parquet" else _write_csv)(path, columns, found)


def check_format(path: Path) -> None:
    """See whether a file of this name can be written.

    Raises:
        ExportError: it ends in something else than `.csv` and `.parquet`, or pyarrow is not there.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ExportError(f"{path}: expected a name that ends in .csv or .parquet")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ExportError(
                "Parquet needs pyarrow: pip install 'tapline-traffic[parquet]', or write a .csv"
            ) from None


def _row(past: PastFlow | PastTrace | PastAlert) -> Row:
    if isinstance(past, PastAlert):
        return msgspec.structs.asdict(past)
    verdict = past.verdict
    row = {name: getattr(verdict, name) for name in Verdict.__struct_fields__}
    row |= {name: getattr(past, name) for name in past.__struct_fields__ if name != "verdict"}
    row |= {"label": verdict.label, "nearest": verdict.nearest}
    row["alternatives"] = msgspec.json.encode(verdict.alternatives).decode()
    if isinstance(past, PastTrace):
        row["top_flows"] = msgspec.json.encode(past.top_flows).decode()
    return {name: None if value is msgspec.UNSET else value for name, value in row.items()}


def _write_csv(path: Path, columns: tuple[str, ...], found: Iterator[Row]) -> int:
    written = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in found:
            writer.writerow([_cell(row[name]) for name in columns])
            written += 1
    return written


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return sheet_cell(value) if isinstance(value, str) else value


def _write_parquet(path: Path, columns: tuple[str, ...], found: Iterator[Row]) -> int:
    import pyarrow
    from pyarrow import parquet

    kinds: dict[str, Callable[[], Any]] = {
        "int64": pyarrow.int64,
        "uint16": pyarrow.uint16,
        "float64": pyarrow.float64,
        "bool": pyarrow.bool_,
        "lengths": lambda: pyarrow.list_(pyarrow.int32()),
        "texts": lambda: pyarrow.list_(pyarrow.string()),
        "text": pyarrow.string,
    }
    schema = pyarrow.schema([(name, kinds[_TYPES.get(name, "text")]()) for name in columns])
    written = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        group: list[Row] = []
        for row in found:
            group.append(row)
            written += 1
            if len(group) == ROWS_IN_A_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pyarrow.Table.from_pylist(group, schema))
    return written
