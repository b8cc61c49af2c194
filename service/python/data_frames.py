"""Flows, verdicts and traces as Arrow tables and pandas DataFrames: columns are built by the batch, with the names of
the JSON and CSV records. Needs the extra `pandas`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tapline.installation import install_command
from tapline.models.flow import Flow
from tapline.models.server_name import server_name
from tapline.models.verdict import Verdict
from tapline.service.community_id import community_id
from tapline.service.python.offline import Result
from tapline.service.traces.trace_verdict import TraceVerdict

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CHUNK_ROWS = 4096
"""Rows that are kept as records before they become columns."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Column:
    """A column: the name of its Arrow type in `_arrow_type`, and its values for many records."""

    name: str
    type: str
    values: Callable[[Sequence[Any]], list[Any]]


def flow_table(
    results: Iterable[Result],
    *,
    verdicts: bool = True,
    alternatives: bool = False,
    lengths: bool = False,
    content: bool = False,
) -> pa.Table:
    """One row for each flow, in order.

    Columns: `input`, what `models.flow.Flow` has beside lengths and content, `community_id`, `start` (UTC, in
    microseconds, the time of `start_us`); with `verdicts` those of the verdict, null where there is none;
    `alternatives` adds the other labels and their confidences, `lengths` the signed payload lengths, `content` the
    first content bytes each way.

    Raises:
        ImportError: pyarrow is not installed.
    """
    columns = [*_FLOW]
    columns += _LENGTHS if lengths else []
    columns += _CONTENT if content else []
    columns += _verdict_columns(attrgetter("verdict"), _FLOW_VERDICT, alternatives) if verdicts else []
    return _table(results, columns)


def trace_table(traces: Iterable[TraceVerdict], *, alternatives: bool = False) -> pa.Table:
    """One row for each trace, in order, with the columns of the CSV of traces; `start` and `end` in UTC.

    Raises:
        ImportError: pyarrow is not installed.
    """
    columns = [*_TRACE[:9], *_verdict_columns(attrgetter("verdict"), _VERDICT, alternatives), *_TRACE[9:]]
    return _table(traces, columns)


def to_pandas(table: Callable[[], pa.Table]) -> pd.DataFrame:
    """What a call gives, as a DataFrame: texts that repeat are categories, times `datetime64[us, UTC]`, truth values
    `boolean`, which may be missing.

    Raises:
        ImportError: pandas is not installed; nothing was called then.
    """
    pandas, pyarrow = _module("pandas"), _module("pyarrow")
    types = {pyarrow.bool_(): pandas.BooleanDtype()}
    # gives up each column of the table as soon as it is one of the frame
    return table().to_pandas(types_mapper=types.get, split_blocks=True, self_destruct=True)  # type: ignore[no-any-return]


def _module(name: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError:
        raise ImportError(f"a table needs {name}, of the extra `pandas`: {install_command('pandas')}") from None


def _table(records: Iterable[Any], columns: Sequence[_Column]) -> pa.Table:
    pa = _module("pyarrow")
    types = _types(pa)
    schema = pa.schema([(column.name, types[column.type]) for column in columns])
    batches = [
        pa.RecordBatch.from_arrays(
            [_array(pa, column.values(chunk), types[column.type]) for column in columns], schema=schema
        )
        for chunk in _chunks(records)
    ]
    return pa.Table.from_batches(batches, schema=schema).unify_dictionaries()


def _array(pa: Any, values: list[Any], type_: Any) -> Any:
    if pa.types.is_dictionary(type_):
        return pa.array(values, pa.string()).dictionary_encode()
    return pa.array(values, type_)


def _types(pa: Any) -> dict[str, Any]:
    return {
        "text": pa.string(),
        "category": pa.dictionary(pa.int32(), pa.string()),
        "count": pa.int64(),
        "port": pa.uint16(),
        "time": pa.timestamp("us", tz="UTC"),
        "truth": pa.bool_(),
        "share": pa.float64(),
        "bytes": pa.binary(),
        "texts": pa.list_(pa.string()),
        "shares": pa.list_(pa.float64()),
        "lengths": pa.list_(pa.int32()),
    }


def _chunks(records: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk


def _read(name: str, type_: str, path: str | None = None) -> _Column:
    """A column that is a field of the records."""
    get = attrgetter(path or name)
    return _Column(name, type_, lambda records: list(map(get, records)))


def _of_flow(name: str, type_: str) -> _Column:
    return _read(name, type_, f"flow.{name}")


def _made(name: str, type_: str, make: Callable[[Flow], Any]) -> _Column:
    return _Column(name, type_, lambda results: [make(result.flow) for result in results])


def _verdict_columns(
    verdict_of: Callable[[Any], Verdict | None], fields: dict[str, str], alternatives: bool
) -> list[_Column]:
    def field(name: str) -> Callable[[Sequence[Any]], list[Any]]:
        def values(records: Sequence[Any]) -> list[Any]:
            found = (getattr(verdict_of(record), name, None) for record in records)
            return [None if value is msgspec.UNSET else value for value in found]

        return values

    def others(name: str) -> Callable[[Sequence[Any]], list[Any]]:
        def values(records: Sequence[Any]) -> list[Any]:
            verdicts = map(verdict_of, records)
            return [[getattr(each, name) for each in verdict.alternatives] if verdict else None for verdict in verdicts]

        return values

    columns = [_Column(name, type_, field(name)) for name, type_ in fields.items()]
    if alternatives:
        columns.append(_Column("alternatives", "texts", others("label")))
        columns.append(_Column("alternative_confidences", "shares", others("confidence")))
    return columns


_FLOW = [
    _read("input", "category"),
    _of_flow("uid", "text"),
    _made("community_id", "text", community_id),
    _read("start", "time", "flow.start_us"),
    _of_flow("start_us", "count"),
    _of_flow("duration_us", "count"),
    _of_flow("proto", "category"),
    _of_flow("orig_h", "text"),
    _of_flow("orig_p", "port"),
    _of_flow("resp_h", "text"),
    _of_flow("resp_p", "port"),
    _of_flow("service", "category"),
    _of_flow("conn_state", "category"),
    _of_flow("up", "count"),
    _of_flow("down", "count"),
    _of_flow("orig_pkts", "count"),
    _of_flow("resp_pkts", "count"),
    _of_flow("orig_ip_bytes", "count"),
    _of_flow("resp_ip_bytes", "count"),
    _of_flow("complete", "truth"),
    _of_flow("sensor", "category"),
    _made("server_name", "text", server_name),
]
_LENGTHS = [_of_flow("payload_lengths", "lengths")]
_CONTENT = [_of_flow("orig_bytes", "bytes"), _of_flow("resp_bytes", "bytes")]
_VERDICT = {
    "label": "category", "nearest": "category", "confidence": "share", "unknown": "truth", "model": "category",
    "version": "category", "final": "truth",
}  # fmt: skip
_FLOW_VERDICT = {**_VERDICT, "port_label": "category", "unexpected_port": "truth"}
_TRACE = [
    _read("source", "category"),
    _read("subject_kind", "category"),
    _read("subject", "text"),
    _read("start", "time", "start_us"),
    _read("start_us", "count"),
    _read("end", "time", "end_us"),
    _read("end_us", "count"),
    _read("flows", "count"),
    _read("cut", "count"),
    _read("suspicion", "share"),
    _read("suspicious", "truth"),
    _Column("top_uids", "texts", lambda traces: [[flow.uid for flow in trace.top_flows] for trace in traces]),
    _Column("top_shares", "shares", lambda traces: [[flow.share for flow in trace.top_flows] for trace in traces]),
]
