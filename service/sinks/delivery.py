"""How records get to an output, whatever its kind: a bounded queue, a thread that sends, pauses between tries, a spool
on disk while the other side is away, and an account of all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog
from tapline.service.sinks.disk_spool import DiskSpool, SpoolError
from tapline.service.sinks.other_side import OtherSide
from tapline.service.sinks.output_counts import OutputCounts
from tapline.service.sinks.output_queue import OutputQueue, Pending, Record
from tapline.service.sinks.output_url import OutputOptions, RecordKind
from tapline.service.sinks.sender import AwayError, Sender, reason_of
from tapline.service.sources.bus.transport import pause_seconds

SPOOL_SECONDS = 0.25
"""How often what came is moved to the spool while the other side is away: so much a killed process may lose."""

STOPPING_PAUSE_SECONDS = 0.1
LONGEST_RETRY_AFTER_SECONDS = 300.0

SPOOLED_AT_ONCE = 1000
"""Records that are moved to the spool in one go."""

DROPPED_SECONDS = 60.0
"""So long a drop is a problem that is shown."""

_GRACE_SECONDS = 0.5


class Delivery:
    """Takes records in the event loop, sends them in a thread of its own, which nobody waits for beyond a limit.

    What was sent and not confirmed is sent again: a record arrives at least once, or is counted.
    """

    def __init__(self, output: OutputOptions, sender: Sender, metrics: Metrics, spool: DiskSpool | None) -> None:
        self.name = output.name
        self.shown = output.shown
        self.counts = OutputCounts()
        self._sender = sender
        self._spool = spool
        self._queue = OutputQueue(output.queue_records, output.queue_mb << 20)
        self._in_flight: list[Pending] = []
        self._sending = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._notify_at = 0
        self._until: float | None = None
        self._over = False
        self._reopen = False
        self._thread: threading.Thread | None = None
        self._dropped_at = -math.inf
        self._log = QuietLog(log, output=self.name)
        self._outcomes = {
            outcome: metrics.output_records.labels(self.name, outcome)
            for outcome in ("received", "recovered", "written", "dropped", "failed")
        }
        metrics.output_queue.labels(self.name).set_function(lambda: self.queued)
        metrics.output_spool.labels(self.name).set_function(lambda: self.spooled)
        self._other_side = OtherSide(self.name, metrics.output_up.labels(self.name), self._log)
        if self.spooled:
            self._count("recovered", self.spooled)
            log.info("records of an earlier run wait", output=self.name, records=self.spooled)

    @property
    def queued(self) -> int:
        """How many wait in memory, those on their way included."""
        return len(self._queue) + len(self._in_flight)

    @property
    def spooled(self) -> int:
        """How many wait on disk."""
        return self._spool.records if self._spool is not None else 0

    @property
    def problem(self) -> str | None:
        """What is wrong with it now, or None."""
        if self._other_side.away is not None:
            return self._other_side.away
        if time.monotonic() - self._dropped_at < DROPPED_SECONDS:
            return "records are dropped: more come than it takes"
        return None

    def put(self, pending: Pending) -> None:
        """Take a record, never waiting; where there is no room, something is dropped, in the order of the queue."""
        with self._lock:
            self._count("received", 1)
            if self._over:
                self._drop(pending.kind, 1)
                return
            if dropped := self._queue.put(pending):
                self._drop_where_full(dropped)
            if 0 < self._notify_at <= len(self._queue):
                self._changed.notify()

    def reopen(self) -> None:
        """Open anew what is open, and try again at once what is away."""
        with self._lock:
            self._reopen = True
            self._changed.notify()

    async def run(self) -> None:
        """Send until stopped.

        Raises:
            Exception: whatever the thread died of, a fault of ours.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[BaseException | None] = loop.create_future()

        def tell(error: BaseException | None) -> None:
            if not result.done():
                result.set_result(error)

        self._start(lambda error: loop.call_soon_threadsafe(tell, error))
        if died := await result:
            raise died

    async def stop(self, limit_seconds: float) -> None:
        """Send what waits within a limit; then keep the rest in the spool, or drop it where there is none."""
        with self._lock:
            self._until = time.monotonic() + limit_seconds
            nothing_waits = not self.queued and not self.spooled
            self._changed.notify()
        if self._thread is None or not self._thread.is_alive():  # it died, or never ran
            self._start(lambda _: None)
        assert self._thread is not None
        seconds = 0 if nothing_waits else limit_seconds
        await asyncio.to_thread(self._thread.join, seconds + _GRACE_SECONDS)
        await asyncio.to_thread(self._finish)

    def _start(self, tell: Callable[[BaseException | None], object]) -> None:
        def work() -> None:
            died = None
            try:
                self._work()
            except BaseException as error:  # it is raised where somebody waits for the thread
                died = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                tell(died)

        self._thread = threading.Thread(target=work, name=f"output {self.name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        with self._lock:
            self._drop_where_full(self._queue.put_back(self._in_flight))  # of a thread that died
            self._in_flight = []
        while self._wait_for_work():
            if self._take_reopen():
                self._sender.reopen()
                self._other_side.probe_soon()
            if self._is_to_be_probed():
                self._probe()
                continue
            if self.spooled or self._queue.is_half_full:  # what is slow has the room on disk, too
                self._spool_queue()
            self._send_next()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False where there is nothing more to be done, ever."""
        gathered: float | None = None
        with self._lock:
            while True:
                if self._is_over():
                    return False
                if self._reopen or self.spooled or self._until is not None:
                    return True
                if len(self._queue) >= self._sender.batch_records:
                    return True
                if self._is_to_be_probed():
                    return True
                if not len(self._queue):
                    self._wait(1, self._other_side.probe_in_seconds)
                    continue
                gathered = gathered or time.monotonic() + self._sender.gather_seconds
                if (left := gathered - time.monotonic()) <= 0:
                    return True
                self._wait(self._sender.batch_records, left)

    def _is_to_be_probed(self) -> bool:
        """Whether nothing waits whose sending would tell how the other side is, and that was long ago, or never."""
        idle = not len(self._queue) and not self.spooled and self._until is None
        return idle and self._other_side.probe_in_seconds <= 0

    def _probe(self) -> None:
        """Look whether the other side is there; while it is away, so often as records would be tried again."""
        away: AwayError | None = None
        self._sending = True
        try:
            self._sender.probe()
        except AwayError as error:
            away = error
        except Exception as error:  # a fault of ours: records are sent all the same
            self._log.error("fault", "an output could not be looked at", error=type(error).__name__, exc_info=error)
        with self._lock:
            self._sending = False
            if self._over:
                return
        self._note(away)

    def _is_over(self) -> bool:
        if self._until is None:
            return False
        waiting = len(self._queue) + self.spooled
        given_up = self._other_side.away is not None and self._spool is not None
        return not waiting or given_up or time.monotonic() > self._until

    def _wait(self, records: int, seconds: float | None) -> None:
        """Wait until so many records are queued, or something else has changed; the lock is held."""
        self._notify_at = records
        self._changed.wait(seconds)
        self._notify_at = 0

    def _take_reopen(self) -> bool:
        with self._lock:
            asked, self._reopen = self._reopen, False
        return asked

    def _send_next(self) -> None:
        """Send the next batch, from the spool where something is there."""
        sender = self._sender
        from_spool: list[Record] = []
        if self._spool is not None and self.spooled:
            try:
                from_spool = self._spool.first(sender.batch_records, sender.batch_bytes)
            except OSError as error:
                self._give_up_piece(self._spool, reason_of(error))
                return
        with self._lock:
            if not from_spool:
                self._in_flight = self._queue.take(sender.batch_records, sender.batch_bytes)
            self._sending = True
        batch = from_spool or self._made()
        if batch:
            self._send(batch, is_spooled=bool(from_spool))
        self._sending = False

    def _give_up_piece(self, spool: DiskSpool, reason: str) -> None:
        """A file of the spool cannot be read: others can."""
        self._log.error("unreadable", "a file of the spool cannot be read, its records are lost", reason=reason)
        with self._lock:
            for kind, records in spool.give_up_first().items():
                self._drop(kind, records)

    def _made(self) -> list[Record]:
        """The records of what is in flight. One that cannot be made, by a fault of ours, costs itself."""
        made: list[Pending] = []
        for pending in self._in_flight:
            try:
                _ = pending.record
            except Exception as error:
                self._log.error("fault", "a record could not be made", error=type(error).__name__, exc_info=error)
            else:
                made.append(pending)
        with self._lock:
            self._count("failed", len(self._in_flight) - len(made))
            self._in_flight = made
        return [pending.record for pending in made]

    def _send(self, batch: Sequence[Record], *, is_spooled: bool) -> None:
        failed: Sequence[Record] = ()
        rest: Sequence[Record] = ()
        away: AwayError | None = None
        broken = [record for record in batch if is_spooled and not record.is_whole]
        try:
            failed = [
                *self._sender.send([record for record in batch if record not in broken] if broken else batch),
                *broken,
            ]
        except AwayError as error:
            away, rest = error, batch
            if error.rest is not None:
                rest, failed = error.rest, broken
        except Exception as error:  # a fault of ours with what is in the batch: it costs the batch, not those after it
            failed = batch
            self._log.error("fault", "records could not be sent", error=type(error).__name__, exc_info=error)
        with self._lock:
            if self._over:
                return
            self._in_flight = []
            self._sending = False
            self._count("written", len(batch) - len(failed) - len(rest))
            self._count("failed", len(failed))
            stays = is_spooled and len(rest) == len(batch)
            if not stays:
                self._drop_where_full(self._queue.put_back(map(Pending.of, rest)))
        if is_spooled and not stays:
            self._forget(batch)
        if failed:
            self._log.error("failed", "records will never be taken", records=len(failed))
        self._note(away)

    def _note(self, away: AwayError | None) -> None:
        """Say how the other side is, and wait where it is away."""
        if away is not None:
            self._pause(away)
        else:
            self._other_side.is_here()

    def _forget(self, batch: Sequence[Record]) -> None:
        assert self._spool is not None
        try:
            self._spool.sent(batch)
        except OSError as error:
            self._log.error("sent", "a restart will send records again", reason=reason_of(error))

    def _pause(self, away: AwayError) -> None:
        """Say why nothing can be sent, and wait before it is tried again; what comes meanwhile goes to the spool."""
        self._other_side.is_away(str(away), records_wait=bool(len(self._queue) or self.spooled))
        wanted = min(away.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
        until = time.monotonic() + max(pause_seconds(self._other_side.failures), wanted)
        while (left := until - time.monotonic()) > 0:
            self._spool_queue()
            with self._lock:
                if self._until is not None:
                    self._changed.wait(min(left, STOPPING_PAUSE_SECONDS))
                    return
                if self._reopen:
                    return
                self._changed.wait(min(left, SPOOL_SECONDS))

    def _spool_queue(self) -> None:
        """Move what is queued to the spool, where there is one."""
        while self._spool is not None:
            with self._lock:
                batch = self._in_flight = self._queue.take(SPOOLED_AT_ONCE)
            if not batch or not self._to_spool(self._spool):
                return

    def _to_spool(self, spool: DiskSpool) -> bool:
        """Write what is in flight to the spool; whether all of it is there. The rest waits on in the queue."""
        rest: Sequence[Record] = ()
        dropped: Counter[RecordKind] = Counter()
        try:
            dropped = spool.append(self._made())
        except SpoolError as error:
            rest = error.rest
            self._log.error("spool", "the spool cannot be written", reason=str(error))
        with self._lock:
            self._in_flight = []
            for kind, records in dropped.items():
                self._drop(kind, records)
            self._drop_where_full(self._queue.put_back(map(Pending.of, rest)))
        return not rest

    def _finish(self) -> None:
        """Account for what is left. A thread that still hangs in its sender touches nothing any more."""
        hangs = self._thread is not None and self._thread.is_alive()
        with self._lock:
            self._over = True
            if hangs:
                log.warning("an output hangs, it is left alone", output=self.name)
            self._drop_where_full(self._queue.put_back(self._in_flight))
            self._in_flight = []
            usable = not hangs or self._sending
        if usable:
            self._spool_queue()
        with self._lock:
            left = self._queue.take(len(self._queue))
            self._drop_where_full(left)
        if self._spool is not None and usable:
            self._spool.close()
        if not hangs:
            self._sender.close()
        if self.spooled or left:
            log.warning("records were not sent", output=self.name, spooled=self.spooled, dropped=len(left))

    def _drop_where_full(self, dropped: Sequence[Pending]) -> None:
        for pending in dropped:
            self._drop(pending.kind, 1)

    def _drop(self, kind: RecordKind, records: int) -> None:
        """Count what was dropped."""
        self.counts.dropped_by[kind] += records
        self._count("dropped", records)
        self._dropped_at = time.monotonic()
        self._log.warning("dropped", "records were dropped", records=records)

    def _count(self, outcome: str, records: int) -> None:
        setattr(self.counts, outcome, getattr(self.counts, outcome) + records)
        self._outcomes[outcome].inc(records)
