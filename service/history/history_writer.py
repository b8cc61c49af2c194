"""The one thread that writes the history: what waits for it is bounded, and nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError

from tapline.models.packed_packets import head_bytes
from tapline.service.history.batch_writing import Seen, SeenFlow, SeenTrace, write_batch
from tapline.service.history.database import Database
from tapline.service.history.history_errors import HistoryError
from tapline.service.history.past import HistoryCounts
from tapline.service.history.retention import Retention
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog

COMMIT_SECONDS = 0.25
"""Between two commits while records come; kept well below half a second, so that a batch has its time, too."""

MAX_BATCH = 4000
"""Most records of a transaction."""

MAX_PENDING = 100_000
MAX_PENDING_BYTES = 256 << 20
"""Most that waits to be written, in records and in bytes of memory; what comes beyond is shed."""

TRIM_SECONDS = 1.0
"""How often it is looked whether something is to be deleted."""

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 2.0
"""Between two tries while the database refuses."""

_RECORD_BYTES = 1500
"""What a record takes in memory beside its lists and contents."""

_REFUSALS = (OperationalError, InterfaceError, InternalError)
"""What a database raises that cannot work now: full, locked, gone. Anything else is a fault of what was written."""


class HistoryWriter:
    """Takes records from the event loop, writes them in `run`, which has a thread of its own.

    `problem` says why nothing can be written now, or is None.
    """

    def __init__(
        self, database: Database, retention: Retention, metrics: Metrics, *, is_open: bool, content: bool
    ) -> None:
        self.counts = HistoryCounts()
        self.problem: str | None = None
        self._database = database
        self._retention = retention
        self._metrics = metrics
        self._is_open = is_open
        self._content = content
        self._waiting: deque[tuple[Seen, int]] = deque()
        self._waiting_bytes = 0
        self._taken: list[tuple[Seen, int]] = []
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._until: float | None = None
        self._unsure: tuple[str, int] | None = None
        self._trimmed_at = 0.0
        self._log = QuietLog(log)

    @property
    def used_bytes(self) -> int:
        """Size of the database, as it was measured last."""
        return self._retention.used_bytes

    def put(self, seen: Seen) -> None:
        """Take a record, or shed it where too much waits. Never waits."""
        size = _memory_bytes(seen)
        with self._lock:
            fits = self.counts.pending < MAX_PENDING and self._waiting_bytes + size <= MAX_PENDING_BYTES
            if fits:
                self._waiting.append((seen, size))
                self._waiting_bytes += size
                self.counts.pending += 1
            else:
                self.counts.shed += 1
        if not fits:
            self._metrics.history_records.labels("shed").inc()

    def stop(self, limit_seconds: float) -> None:
        """Let `run` end once all is written, or this time is over. What then waits is shed."""
        with self._lock:
            self._until = time.monotonic() + limit_seconds
            self._work.notify()

    def run(self) -> None:
        """Write until stopped."""
        pause = FIRST_PAUSE_SECONDS
        while not self._is_over():
            try:
                self._step()
            except _REFUSALS as error:
                self._refused(error)
                self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                pause = FIRST_PAUSE_SECONDS
        with self._lock:
            left, self.counts.pending = self.counts.pending, 0
            self.counts.shed += left
            self._waiting.clear()
            self._taken.clear()
        self._metrics.history_records.labels("shed").inc(left)
        self._metrics.history_pending.set(0)

    def _step(self) -> None:
        """Write what waits, delete what is due."""
        started = time.monotonic()
        self._open()
        self._make_sure()
        with self._lock:
            while self._waiting and len(self._taken) < MAX_BATCH:
                self._taken.append(self._waiting.popleft())
        wrote = len(self._taken)
        if wrote:
            self._write(self._taken)
            self._metrics.history_write_seconds.observe(time.monotonic() - started)
        trims = time.monotonic() - self._trimmed_at >= TRIM_SECONDS
        more = trims and self._retention.step()
        if trims and not more:
            self._trimmed_at = time.monotonic()
            self._metrics.history_bytes.set(self._retention.used_bytes)
        self.problem = None
        self._metrics.history_up.set(1)
        self._metrics.history_pending.set(self.counts.pending)
        if wrote < MAX_BATCH and not more:
            self._wait(COMMIT_SECONDS - (time.monotonic() - started))

    def _open(self) -> None:
        if self._is_open:
            return
        try:
            self._database.open()
        except HistoryError as error:
            raise OperationalError(None, None, error) from error
        self._is_open = True

    def _write(self, batch: Sequence[tuple[Seen, int]]) -> None:
        """Write a batch, or its halves where it is refused for what is in it, until the bad record stands alone."""
        try:
            with self._database.engine.begin() as connection:
                if (transaction := self._database.transaction(connection)) is not None:
                    self._unsure = (transaction, len(batch))
                write_batch(connection, self._database, [seen for seen, _ in batch], content=self._content)
        except _REFUSALS:
            raise
        except Exception as error:
            self._unsure = None
            if len(batch) > 1:
                middle = len(batch) // 2
                self._write(batch[:middle])
                self._write(batch[middle:])
                return
            self._log.error("record", "a record could not be kept", error=type(error).__name__, exc_info=error)
            self._done(batch, "failed")
        else:
            self.problem = None
            self._done(batch, "kept")

    def _make_sure(self) -> None:
        """Where the database broke away from a transaction that it had committed, do not write its records again."""
        if self._unsure is None:
            return
        transaction, records = self._unsure
        if self._database.was_committed(transaction):
            self._done(self._taken[:records], "kept")
        self._unsure = None

    def _done(self, batch: Sequence[tuple[Seen, int]], outcome: str) -> None:
        self._unsure = None
        self._metrics.history_records.labels(outcome).inc(len(batch))
        with self._lock:
            setattr(self.counts, outcome, getattr(self.counts, outcome) + len(batch))
            self.counts.pending -= len(batch)
            self._waiting_bytes -= sum(size for _, size in batch)
            self._taken = self._taken[len(batch) :]

    def _refused(self, error: DBAPIError) -> None:
        self.problem = f"the history cannot be written: {_reason(error)}"
        self._metrics.history_up.set(0)
        self._metrics.history_pending.set(self.counts.pending)
        self._log.error("refused", "the history cannot be written", place=self._database.shown, reason=_reason(error))

    def _wait(self, seconds: float) -> None:
        with self._lock:
            if self._until is None and seconds > 0:
                self._work.wait(seconds)
            elif self._until is not None and self.problem:
                self._work.wait(min(seconds, 0.1))

    def _is_over(self) -> bool:
        with self._lock:
            return self._until is not None and (not self.counts.pending or time.monotonic() > self._until)


def _memory_bytes(seen: Seen) -> int:
    """What a record takes in memory, about."""
    if isinstance(seen, SeenTrace):
        return _RECORD_BYTES + 500 * len(seen.trace.top_flows)
    if not isinstance(seen, SeenFlow):
        return _RECORD_BYTES
    flow = seen.flow
    content = len(flow.orig_bytes) + len(flow.resp_bytes) + 100 * len(flow.heads) + head_bytes(flow.heads)
    return _RECORD_BYTES + 36 * len(flow.payload_lengths) + content


def _reason(error: DBAPIError) -> str:
    """What the database says, in one line."""
    return (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
