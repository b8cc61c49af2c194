"""Does captures one after the other: reads each, classifies its flows and traces, and writes its rows as they come.

A worker holds the models, and of a capture no more than the flows that are still open and some thousand rows, whatever
its size. It may be killed at any moment: what is done has a mark, and all else is done again by whoever is given it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace

from tapline.service.bulk.bulk_records import (
    BulkCapture,
    BulkError,
    CaptureAccount,
    Made,
    difference,
    made_with,
    one_line,
)
from tapline.service.bulk.bulk_sources import open_capture
from tapline.service.bulk.bulk_store import FLOWS, TRACES, BulkStore
from tapline.service.engines.engine import EngineName
from tapline.service.engines.thread import EngineStalledError
from tapline.service.inference.classifier import Classifier
from tapline.service.log_lines import log
from tapline.service.python.chosen import open_classifier
from tapline.service.python.data_frames import flow_table, trace_table
from tapline.service.python.offline import OfflineRun, Result
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import FlowInput, ReaderName

GROUP_ROWS = 8192
"""Rows of a Parquet row group: those that a worker holds before it writes them."""

TRIES = 3
"""How often a capture is begun in a run: one that takes so many workers with it is not tried again."""

_STALLED_STATUS = 70


class WorkerOptions(msgspec.Struct, frozen=True):
    """What a worker computes with, and where it writes. `run`: its name among runs; `made`: what the models on its
    machine must be."""

    run: str
    out: str
    made: Made
    checkpoint: Path
    traces: tuple[Path, ...]
    engine: EngineName
    threads: int


class BulkWorker:
    """Loads the models once; `capture` does one capture, and says what came of it.

    Raises:
        BulkError: this machine has other models.
        CheckpointError, EngineError: a model is none, or cannot be run.
    """

    def __init__(self, options: WorkerOptions) -> None:
        made = options.made
        here = made_with(options.checkpoint, options.traces, ports=made.ports, reader=made.reader)
        if change := difference(made, here):
            raise BulkError(f"a machine of the cluster has other models ({change}): install the same on all")
        self._reader: ReaderName = made.reader
        self._classifier: Classifier = open_classifier(
            options.checkpoint,
            options.traces,
            options.engine,
            required=True,
            warn=log.warning,
            threads=options.threads,
            ports=made.ports,
        )
        self._store = BulkStore(options.out)
        self._run = options.run

    def capture(self, capture: BulkCapture) -> CaptureAccount:
        """Do a capture, unless it is done. Whatever is wrong with it is in its account.

        Raises:
            BulkError: the directory cannot be written.
        """
        before = self._store.account(capture.key)
        if before is not None and before.is_of(capture) and before.error is None:
            return before  # by a worker that died after it
        tries = before.tries if before is not None and before.run == self._run else 0
        account = CaptureAccount(
            capture=capture.shown_path,
            key=capture.key,
            size_bytes=capture.size_bytes,
            changed=capture.changed,
            run=self._run,
            tries=tries + 1,
            error="its worker ended before it was done",
        )
        if tries == TRIES:
            error = f"its worker died, {TRIES} times: not enough memory for it, or a fault in what reads it"
            account = replace(account, tries=tries, error=error)
            self._store.mark(account)
            return account
        self._store.mark(account)
        try:
            account = self._classified(capture, account)
        except BulkError:
            raise
        except CaptureError as error:
            account = replace(account, error=str(error))
        except EngineStalledError:
            os._exit(_STALLED_STATUS)  # nothing but another process gets an engine that answers
        except Exception as error:  # of a filesystem, or of a reader that was not prepared for this capture
            log.exception("capture failed", capture=capture.shown_path)
            account = replace(account, error=one_line(error))
        self._store.mark(account)
        return account

    def _classified(self, capture: BulkCapture, begun: CaptureAccount) -> CaptureAccount:
        """Write the rows of a capture; its account is `begun`, with what came of it.

        Raises:
            CaptureError: it cannot be read to its end; nothing is written then.
            BulkError: the directory cannot be written.
        """
        with contextlib.ExitStack() as stack:

            def opened(name: str, reader: ReaderName, options: ReadOptions) -> FlowInput:
                source, stream = open_capture(capture.path, reader, options)
                if stream is not None:
                    stack.callback(stream.close)
                return source

            flows = stack.enter_context(_Rows(self._store, FLOWS, capture, flow_table))
            traces = stack.enter_context(_Rows(self._store, TRACES, capture, trace_table))
            run = OfflineRun([capture.name], self._reader, self._classifier, opened=opened)
            for found in stack.enter_context(contextlib.closing(iter(run))):
                (flows if isinstance(found, Result) else traces).add(found)
            (entry,) = run.inputs
            if entry.error is not None:
                raise CaptureError(entry.error)
        summary = run.summary()
        return replace(
            begun,
            error=None,
            flows=summary.flows,
            classified=summary.classified,
            failed=summary.failed,
            traces=sum(each.traces for each in summary.traces),
            trace_failures=sum(each.failed + each.unread for each in summary.traces),
            packets=entry.packets,
            skipped=entry.skipped,
            warning=entry.warning,
        )


class _Rows:
    """A Parquet file of a capture's flows or traces, written by the `GROUP_ROWS`; there once the block is left well."""

    def __init__(
        self, store: BulkStore, folder: str, capture: BulkCapture, table_of: Callable[[list[Any]], pa.Table]
    ) -> None:
        self._store = store
        self._name = f"{folder}/{capture.key}.parquet"
        self._capture = capture.shown_path
        self._table_of = table_of
        self._records: list[Any] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Rows:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self._store.writing(self._name))
            schema = self._with_capture(self._table_of([])).schema
            self._writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool | None:
        if kind is None:
            try:
                self._write()
            except BaseException:
                self._stack.__exit__(*sys.exc_info())
                raise
        return self._stack.__exit__(kind, *rest)

    def add(self, record: Any) -> None:
        """Take a row."""
        self._records.append(record)
        if len(self._records) == GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        with self._store.said(f"write {self._name}"):
            if self._records:
                self._writer.write_table(self._with_capture(self._table_of(self._records)))
        self._records = []

    def _with_capture(self, table: pa.Table) -> pa.Table:
        """The table with the capture in its first column."""
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), [self._capture])
        return table.add_column(0, "capture", column)
