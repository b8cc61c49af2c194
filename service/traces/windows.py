"""Open windows: which flow falls into which, when a window is over, and what is given up where bounds are reached.

The definition of subjects and windows is `models.trace`; this is the same, for flows that come one by one, in any order
of their starts. Where nothing comes late and no bound is reached, it gives the traces of `make_traces`; of a capture
it does so with `max_flows` reached, too. Scoring is others' work: windows leave as jobs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Literal

from tapline.models.flow import Flow
from tapline.models.trace import FlowOrder, TraceSettings, subject_of
from tapline.service.traces.room import Room
from tapline.service.traces.trace_verdict import ScoreJob, TraceFlow, WindowKey
from tapline.service.traces.window import SubjectKey, SubjectWindows, Window

REMEMBERED_EARLY_FLOWS = 65_536
"""Early flows remembered after their window is gone, to tell their final form from a flow that comes late."""

_SLACK_ENTRIES = 1000
_ORDER = attrgetter(*FlowOrder._fields)

CloseReason = Literal["time", "end", "evicted", "swapped"]
"""Why a window was closed: its time was over, its source has ended, there was no room for it any more, or another model
took the place of the one that it is for."""


@dataclass(frozen=True)
class WindowBounds:
    """What open windows may take.

    `lateness_seconds`: how far behind the newest flow of its source a flow may start. `max_subjects`: the subject that
    was silent for longest is closed and forgotten first. `max_open_flows`: the windows that end first are closed first
    (of all models together, where they share a `Room`).
    `max_jobs`: windows that wait to be scored; beyond, the oldest is given up; early ones wait only up to half of that.
    """

    lateness_seconds: float = 60.0
    max_subjects: int = 10_000
    max_open_flows: int = 100_000
    max_jobs: int = 20_000


@dataclass(frozen=True)
class EarlyRule:
    """From how many flows on an open window is scored, and the confidence that its verdict must have to be given."""

    confidence: float
    min_flows: int


@dataclass
class WindowCounts:
    """What became of flows and windows: every flow taken went into a window (`flows`), was `late`, or was a newer form
    of one that had been taken (`replaced`). The model's encoder failed on those that are `unread`. `closed_` counts
    windows that had flows, by reason."""

    flows: int = 0
    replaced: int = 0
    late: int = 0
    unread: int = 0
    cut: int = 0
    closed_time: int = 0
    closed_end: int = 0
    closed_evicted: int = 0
    closed_swapped: int = 0
    below_min_flows: int = 0
    shed: int = 0


@dataclass(slots=True)
class SourceClock:
    """The time of a source: that of its newest flow, and what passed here since."""

    newest_us: int
    seen_at: float

    def now_us(self, wall: float) -> int:
        """Its time now, if it went on as time does here."""
        return self.newest_us + max(0, round((wall - self.seen_at) * 1e6))


@dataclass
class _Source:
    """The clock of a source, and its windows by their ends; entries whose window is gone are passed over."""

    clock: SourceClock
    is_capture: bool
    ends: list[tuple[int, str, int]] = field(default_factory=list)


class TraceWindows:
    """Takes flows with what a model reads of them, gives windows to be scored. Not for threads; nothing in it waits.

    A window is scored early when it has 1, 2, 4, 8 ... flows, from `early.min_flows` on. Captures give their flows when
    those end, however long after their start: the windows of `captures` stay open until `close_all`, and are cut then.
    """

    def __init__(
        self,
        settings: TraceSettings,
        bounds: WindowBounds,
        early: EarlyRule | None = None,
        captures: Collection[str] = (),
        after: TraceWindows | None = None,
        room: Room | None = None,
    ) -> None:
        """`after`: windows of another model that take no new flows. Their counts and clocks go on here, and flows that
        they have forgotten stay forgotten. `room`: shared with the windows of other models, by default their own.
        """
        self.settings = settings
        self.counts: WindowCounts = after.counts if after is not None else WindowCounts()
        self.jobs: deque[ScoreJob] = deque()
        self.subjects: OrderedDict[SubjectKey, SubjectWindows] = OrderedDict()
        self.open_flows = 0
        self.open_windows = 0
        self._bounds = bounds
        self._early = early
        self._captures = frozenset(captures)
        self._sources: dict[str, _Source] = {}
        self._early_flows: dict[tuple[str, str], SubjectKey] = {}
        self._gone: OrderedDict[tuple[str, str], None] = after._gone if after is not None else OrderedDict()
        for name, clock in after.clocks.items() if after is not None else ():
            self.restore_source(name, replace(clock))
        own = Room(bounds.max_subjects, bounds.max_open_flows)
        self._shared: Room = room or (after._shared if after is not None else own)
        self._shared.enter(self)

    def leave(self) -> None:
        """These windows are empty and take no more flows."""
        self._shared.leave(self)

    @property
    def clocks(self) -> dict[str, SourceClock]:
        """The clock of each source."""
        return {name: source.clock for name, source in self._sources.items()}

    @property
    def is_full(self) -> bool:
        """Whether more is open than may be."""
        return self._shared.is_full

    def is_capture(self, source: str) -> bool:
        """Whether a source is a capture."""
        return source in self._captures

    def add(self, source: str, flow: Flow, kept: TraceFlow | None, wall: float) -> None:
        """Take a flow, or the newer form of one; `wall` is the time here, in seconds since the epoch.

        Without what is `kept` of it, it is the newer form of one of which it is. Time in the future is not believed:
        one wrong clock would close every window.
        """
        self._advance(source, flow.start_us, wall)
        earlier: TraceFlow | None = None
        if self._early_flows or self._gone:  # of a capture there are none
            uid = (source, flow.uid)
            known = self._early_flows.pop(uid, None)
            earlier = self._take_out(known, flow.uid) if known else None
            if earlier is None and uid in self._gone:
                self.counts.replaced += 1
                if flow.complete:
                    del self._gone[uid]
                return
        if kept is None and earlier is not None:
            kept = _renewed(earlier, flow)
        if kept is None:
            return
        self.counts.replaced += earlier is not None
        self._put(SubjectKey(source, subject_of(flow, self.settings.subject)), kept, is_new=earlier is None)
        self._shared.keep()

    def close_due(self, wall: float) -> None:
        """Close the windows that are over: no flow may start in them any more."""
        for name, source in self._sources.items():
            if source.is_capture:
                continue
            watermark_us = source.clock.now_us(wall) - round(self._bounds.lateness_seconds * 1e6)
            while source.ends and source.ends[0][0] <= watermark_us:
                self._close_next(name, source, "time")

    def has_early(self, source: str, uid: str) -> bool:
        """Whether an open window holds the early form of a flow."""
        return (source, uid) in self._early_flows

    def close_all(self, source: str | None = None, reason: CloseReason = "end") -> None:
        """Close every window of a source, or of all: nothing more will come."""
        for name in [source] if source is not None else list(self._sources):
            ending = self._sources.get(name)
            while ending and ending.ends:
                self._close_next(name, ending, reason)

    def take_jobs(self, limit: int) -> list[ScoreJob]:
        """The next windows to be scored, the oldest first; an early one that was closed meanwhile is not worth it."""
        found: list[ScoreJob] = []
        while self.jobs and len(found) < limit:
            job = self.jobs.popleft()
            if job.final or self._window(job.key) is not None:
                found.append(job)
        return found

    def note_early(self, key: WindowKey, label: str | None, *, suspicious: bool = False) -> bool:
        """Remember the early verdict of a window, its label where that is sure; False if it says nothing new, or the
        window is closed.
        """
        window = self._window(key)
        if window is None:
            return False
        is_news = label not in (None, window.early_label) or (suspicious and not window.early_suspicious)
        window.early_label = label or window.early_label
        window.early_suspicious |= suspicious
        return is_news

    def _window(self, key: WindowKey) -> Window | None:
        """The open window of that name."""
        subject = self.subjects.get(SubjectKey(key.source, key.subject))
        return subject.window_at(key.start_us) if subject else None

    def restore_source(self, name: str, clock: SourceClock) -> None:
        """Put back the clock of a source of a former run; comes before its subjects."""
        self._sources[name] = _Source(clock, name in self._captures)

    def restore_subject(self, key: SubjectKey, subject: SubjectWindows) -> None:
        """Put back what a former run had open of a subject."""
        self.subjects[key] = subject
        for index, window in subject.windows.items():
            self.open_windows += 1
            self.open_flows += len(window.flows)
            self._index(key, subject, index)
            self._early_flows.update({(key.source, flow.uid): key for flow in window.flows.values() if flow.early})

    def _advance(self, source: str, start_us: int, wall: float) -> None:
        known = self._sources.get(source)
        if known is not None and start_us <= known.clock.newest_us:
            return
        start_us = min(start_us, round(wall * 1e6))
        if known is None:
            self._sources[source] = _Source(SourceClock(start_us, wall), source in self._captures)
        elif start_us > known.clock.newest_us:
            known.clock.newest_us, known.clock.seen_at = start_us, wall

    def _put(self, key: SubjectKey, flow: TraceFlow, *, is_new: bool) -> None:
        subject = self.subjects.get(key)
        if subject is None:
            subject = self.subjects[key] = SubjectWindows(flow.start_us, self.settings.window_us)
        self.subjects.move_to_end(key)
        if subject.moves_back(flow.start_us):
            self._move_back(key, subject, flow.start_us)
        index = subject.index_of(flow.start_us)
        if index < subject.next_index:
            self.counts.late += 1
            self._forget(key.source, flow)
            return
        self.counts.flows += is_new
        window = subject.windows.get(index)
        if window is None:
            window = subject.windows[index] = Window()
            self.open_windows += 1
            self._index(key, subject, index)
        self._insert(key, window, flow)
        if is_new and self._early and window.flows.get(flow.uid) is flow:
            self._score_early(key, subject, index, window)

    def _insert(self, key: SubjectKey, window: Window, flow: TraceFlow) -> None:
        before = len(window.flows)
        cut = window.insert(flow, self._room(key))
        self.open_flows += len(window.flows) - before
        if flow.early:
            self._early_flows[key.source, flow.uid] = key
        if cut is not None:
            self.counts.cut += 1
            self._forget(key.source, cut)

    def _room(self, key: SubjectKey) -> int:
        """Flows that an open window may hold."""
        return self._shared.max_open_flows + 1 if key.source in self._captures else self.settings.max_flows

    def _move_back(self, key: SubjectKey, subject: SubjectWindows, start_us: int) -> None:
        """A subject's first flow began earlier than the one that came first: all its windows do."""
        self.open_windows -= len(subject.windows)
        for cut in subject.move_back(start_us, self._room(key)):
            self.open_flows -= 1
            self.counts.cut += 1
            self._forget(key.source, cut)
        self.open_windows += len(subject.windows)
        for index in subject.windows:
            self._index(key, subject, index)

    def _score_early(self, key: SubjectKey, subject: SubjectWindows, index: int, window: Window) -> None:
        """Queue an early scoring; at powers of two, so that a window costs few of them."""
        assert self._early is not None
        number = len(window.flows)
        if len(self.jobs) > self._bounds.max_jobs // 2:
            return
        if number >= max(self._early.min_flows, self.settings.min_flows) and number & (number - 1) == 0:
            self._queue(self._job(key, subject, index, window, final=False))

    def _take_out(self, key: SubjectKey, uid: str) -> TraceFlow | None:
        """Remove the earlier form of a flow from its window."""
        subject = self.subjects.get(key)
        for window in subject.windows.values() if subject else ():
            found = window.flows.pop(uid, None)
            if found is not None:
                self.open_flows -= 1
                return found
        return None

    def _forget(self, source: str, flow: TraceFlow) -> None:
        """A flow leaves; if it still lives, its final form is not to be taken for a new one."""
        if not flow.early:
            return
        self._early_flows.pop((source, flow.uid), None)
        self._gone[source, flow.uid] = None
        if len(self._gone) > REMEMBERED_EARLY_FLOWS:
            self._gone.popitem(last=False)

    def _index(self, key: SubjectKey, subject: SubjectWindows, index: int) -> None:
        ends = self._sources[key.source].ends
        if len(ends) > 2 * self.open_windows + _SLACK_ENTRIES:
            ends[:] = [
                (own.end_us(number), own_key.subject, number)
                for own_key, own in self.subjects.items()
                if own_key.source == key.source
                for number in own.windows
            ]
            heapify(ends)
        heappush(ends, (subject.end_us(index), key.subject, index))

    def _close_next(self, name: str, source: _Source, reason: CloseReason) -> bool:
        """Close the window of a source that ends first; False if it was closed already."""
        end_us, subject_name, index = heappop(source.ends)
        key = SubjectKey(name, subject_name)
        subject = self.subjects.get(key)
        if subject is None or index not in subject.windows or subject.end_us(index) != end_us:
            return False
        self._close(key, subject, index, reason)
        return True

    def _close(self, key: SubjectKey, subject: SubjectWindows, index: int, reason: CloseReason) -> None:
        window = subject.windows.pop(index)
        subject.next_index = max(subject.next_index, index + 1)
        self.open_windows -= 1
        self.open_flows -= len(window.flows)
        for flow in window.flows.values():
            self._forget(key.source, flow)
        if not window.flows:
            return
        setattr(self.counts, f"closed_{reason}", getattr(self.counts, f"closed_{reason}") + 1)
        if len(window.flows) < self.settings.min_flows:
            self.counts.below_min_flows += 1
        else:
            self._queue(self._job(key, subject, index, window, final=True))

    def _job(self, key: SubjectKey, subject: SubjectWindows, index: int, window: Window, *, final: bool) -> ScoreJob:
        flows = sorted(window.flows.values(), key=_ORDER)
        start_us = subject.start_us(index)
        end_us = subject.end_us(index) if subject.window_us else max(flow.start_us + flow.duration_us for flow in flows)
        kept = flows[-self.settings.max_flows :]
        cut = len(flows) - len(kept)
        self.counts.cut += cut * final
        return ScoreJob(WindowKey(key.source, key.subject, start_us), end_us, kept, window.cut + cut, final)

    def _queue(self, job: ScoreJob) -> None:
        self.jobs.append(job)
        if len(self.jobs) > self._bounds.max_jobs:
            self.jobs.popleft()
            self.counts.shed += 1

    def evict_subject(self) -> None:
        """Close the windows of the subject that was silent for longest, and forget it."""
        key = next(iter(self.subjects))
        for index in sorted(self.subjects[key].windows):
            self._close(key, self.subjects[key], index, "evicted")
        del self.subjects[key]

    def evict_window(self) -> None:
        """Close the window that ends first."""
        name, source = min(
            ((name, source) for name, source in self._sources.items() if source.ends),
            key=lambda entry: entry[1].ends[0],
        )
        self._close_next(name, source, "evicted")


def _renewed(earlier: TraceFlow, flow: Flow) -> TraceFlow:
    """An early flow with what its final form adds; the models saw nothing new of it."""
    earlier.duration_us = flow.duration_us
    earlier.ip_bytes = flow.orig_ip_bytes + flow.resp_ip_bytes
    earlier.early = not flow.complete
    return earlier
