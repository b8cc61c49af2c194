"""Samples as Parquet: the columns of a shard, flows to columns and back. Directories belong to `samples`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tapline.models.flow import Flow, PacketHead
from tapline.training.data.one_flow import Identity

ROW_GROUP_SAMPLES = 4096
"""Samples in a row group: what a reader or writer holds in memory of a shard."""

_HEADS = pa.list_(pa.struct([("gap_us", pa.int64()), ("data", pa.binary())]))
_FLOW_TYPES: dict[str, pa.DataType] = {
    "start_us": pa.int64(), "duration_us": pa.int64(), "orig_p": pa.int32(), "resp_p": pa.int32(), "up": pa.int64(),
    "down": pa.int64(), "payload_lengths": pa.list_(pa.int32()), "orig_bytes": pa.binary(), "resp_bytes": pa.binary(),
    "orig_pkts": pa.int64(), "resp_pkts": pa.int64(), "orig_ip_bytes": pa.int64(), "resp_ip_bytes": pa.int64(),
    "link_type": pa.int16(), "heads": _HEADS, "complete": pa.bool_(),
}  # fmt: skip
_FLOW_FIELDS = tuple(name for name in Flow.__struct_fields__ if name != "server_name")
"""What a shard holds of a flow: the name of its server is evidence for people, and nothing to learn from."""
SCHEMA = pa.schema(
    [("corpus", pa.string()), ("capture", pa.string()), ("label", pa.string())]
    + [(name, _FLOW_TYPES.get(name, pa.string())) for name in _FLOW_FIELDS]
)

_IDENTITY = (
    "uid", "proto", "orig_h", "orig_p", "resp_h", "resp_p", "start_us", "payload_lengths", "corpus", "capture", "label"
)  # fmt: skip
"""The columns that say which flow a row is, and what is said of it."""


class Sample(msgspec.Struct, gc=False):
    """One flow to learn from. `capture` groups flows that resemble each other; `label` is None when it has none."""

    corpus: str
    capture: str
    label: str | None
    flow: Flow


def write_table(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples to a Parquet file (zstd), a row group at a time; gives their number."""
    rest, count = iter(samples), 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while group := list(islice(rest, ROW_GROUP_SAMPLES)):
            writer.write_table(_table(group))
            count += len(group)
    return count


def _table(samples: Sequence[Sample]) -> pa.Table:
    flows = [sample.flow for sample in samples]
    columns: dict[str, Any] = {name: [getattr(sample, name) for sample in samples] for name in SCHEMA.names[:3]}
    columns.update({name: [getattr(flow, name) for flow in flows] for name in _FLOW_FIELDS})
    columns["heads"] = [[{"gap_us": head.gap_us, "data": head.data} for head in flow.heads] for flow in flows]
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def read_table(path: Path) -> Iterator[Sample]:
    """The samples of a Parquet file, a row group in memory at a time.

    Raises:
        pyarrow.ArrowException: it is damaged or no Parquet.
        KeyError: a column is missing.
    """
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP_SAMPLES, use_threads=False):  # threads do not survive a fork
            yield from _samples(batch)


def read_identities(path: Path) -> Iterator[tuple[str, Identity]]:
    """The uid and the identity of each row of a Parquet file, none of them corrected; in the order of `read_table`.

    Raises:
        pyarrow.ArrowException: as `read_table`.
        KeyError: a column is missing.
    """
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP_SAMPLES, columns=list(_IDENTITY), use_threads=False):
            columns = [_values(batch.column(name)) for name in _IDENTITY]
            for uid, proto, orig_h, orig_p, resp_h, resp_p, start, lengths, corpus, capture, label in zip(
                *columns, strict=True
            ):
                low, high = sorted(((orig_h, orig_p), (resp_h, resp_p)))
                first = lengths[0] if lengths else 0
                yield uid, Identity(proto, (low, high), start, first, (corpus, capture), label, corrected=False)


def _samples(batch: pa.RecordBatch) -> Iterator[Sample]:
    columns = {name: _values(batch.column(name)) for name in SCHEMA.names}
    corpora, captures, labels = (columns[name] for name in SCHEMA.names[:3])
    flows = zip(*(columns[name] for name in _FLOW_FIELDS), strict=True)
    for corpus, capture, label, values in zip(corpora, captures, labels, flows, strict=True):
        yield Sample(corpus, capture, label, Flow(*values))


def _values(column: pa.Array) -> list[Any]:
    """A column as Python values; lists are sliced from their flat values, ten times faster than Arrow's own way."""
    if column.type == _HEADS:
        flat = column.flatten()
        gaps, data = (flat.field(name).to_pylist() for name in ("gap_us", "data"))
        return _sliced(column, [PacketHead(gap, head) for gap, head in zip(gaps, data, strict=True)])
    if pa.types.is_list(column.type):
        return _sliced(column, column.flatten().to_numpy().tolist())
    if pa.types.is_integer(column.type):
        return list(column.to_numpy(zero_copy_only=False).tolist())
    return list(column.to_pylist())


def _sliced(column: pa.ListArray, flat: list[Any]) -> list[list[Any]]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    return [flat[low:high] for low, high in pairwise((offsets - offsets[0]).tolist())]
