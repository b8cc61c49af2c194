"""Live flows that wait for an engine: bounded in number and, under overload, in time.

A queue that fills makes everyone wait its whole length and gives no more verdicts for it. So a flow has a deadline
here, by the time that it has waited, which is what CoDel controls (RFC 8289). Flows past it step back behind those in
time. As there, a burst is no overload: a queue that drains gets around to all of them. In one that stands they are
shed, before anything is computed of them, and what comes is refused where enough waits (`Overload`).

The newest go first where flows begin to be late, of those who send least; under overload the newest of each who sends,
in turn. That, and to see by when it was last empty whether a queue stands, because what leaves it has waited least, is
how Maurer's servers do it ("Fail at Scale", ACM Queue 13(8), 2015).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tapline.models.flow import Flow
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.fair_queue import FairQueue, Order
from tapline.service.live.overload import Overload

FRESH_SHARE = 0.8
"""The newest go first where the oldest in time has waited so large a share of its deadline: under overload there are
always some just below it."""

SPARED = 2
"""So many times the room is kept for those who have fewer waiting than others."""

TRIM_SHARE = 1 / 64
"""A full queue is trimmed by so much of its size at once, because finding who sends most takes a look at all."""


Deliver = Callable[[Flow, FlowOutcome | None], None]
"""Is told of a flow what came of it; None where there was nothing to ask about it."""


@dataclass(slots=True, eq=False)
class LiveFlow:
    """A flow on its way, and who is told what came of it. `expires`: it has a deadline."""

    flow: Flow
    deliver: Deliver
    subject: str
    arrived_at: float
    urgent: bool
    expires: bool = True
    waiting: bool = True


OnShed = Callable[[list[LiveFlow], bool], None]
"""Is told of flows that are shed, and whether they expired, or there was no room."""


class LiveQueue:
    """At most `size` flows, fair by originator; `on_shed` is told of those that it gives up."""

    def __init__(
        self,
        size: int,
        on_shed: OnShed,
        *,
        deadline_seconds: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`deadline_seconds` 0: flows wait as long as there is room."""
        self.size = size
        self.busy_since = 0.0
        self._on_shed = on_shed
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._overload = Overload(deadline_seconds)
        self._in_time: FairQueue[LiveFlow] = FairQueue()
        self._late: FairQueue[LiveFlow] = FairQueue()
        self._by_uid: dict[str, LiveFlow] = {}
        self._by_age: deque[LiveFlow] = deque()

    def __len__(self) -> int:
        return len(self._by_uid)

    def find(self, uid: str) -> LiveFlow | None:
        """The flow of this name that waits."""
        return self._by_uid.get(uid)

    @property
    def is_overloaded(self) -> bool:
        """Whether `refused` may say so of a flow that comes now."""
        return self._deadline_seconds > 0 and self._overload.is_on(self._clock()) and len(self) >= self._overload.room

    def refused(self, subjects: Sequence[str]) -> list[bool]:
        """Of flows of these that come now, and expire, whether each is to be shed at once: under overload enough wait.
        There is more room for those who have fewer waiting than others."""
        queue, overload, waiting = self._in_time, self._overload, len(self._by_uid)
        if waiting < overload.room or not self._deadline_seconds or not overload.is_on(now := self._clock()):
            return [False] * len(subjects)
        found = [True] * len(subjects)
        if waiting < SPARED * overload.room:
            several, all_of_them = queue.subjects, len(queue)
            found = [queue.waiting_of(subject) * several >= all_of_them for subject in subjects]
        if any(found):
            overload.shed(now)
        return found

    def put(self, live: LiveFlow) -> None:
        """Queue a flow that has just arrived; where there is no room, those who send most lose their oldest ones."""
        self._overload.arrived += 1
        if not self._by_uid:
            self.busy_since = live.arrived_at
            self._overload.was_full = False
        self._by_uid[live.flow.uid] = live
        self._in_time.put(live.subject, live, urgent=live.urgent)
        if self._deadline_seconds and live.expires:
            self._by_age.append(live)
            if len(self._by_age) > 2 * self.size:  # the oldest of it are there, and hold up those that left before them
                self._by_age = deque(live for live in self._by_age if live.waiting)
        if len(self) > self.size:
            number = max(1, int(self.size * TRIM_SHARE))
            self._overload.was_full = True
            trimmed = self._late.trim(number)
            self._shed(trimmed + self._in_time.trim(number - len(trimmed)), expired=False)

    def take(self, number: int) -> list[LiveFlow]:
        """The next flows to compute, at most so many."""
        order = self._look_at_the_time() if self._deadline_seconds else "oldest"
        found = self._in_time.take(number, order=order)
        found += self._late.take(number - len(found), order=order)
        if found:
            self._overload.took(self._clock(), len(found), number)
        self._leave(found)
        return found

    def _look_at_the_time(self) -> Order:
        """Put back or shed what is past its deadline, and under overload what there is no room for; who is next."""
        now, deadline, by_age = self._clock(), self._deadline_seconds, self._by_age
        stands = self._overload.stands(now, self.busy_since)
        expired = self._late.take(len(self._late)) if stands else []
        while by_age and (not by_age[0].waiting or now - by_age[0].arrived_at > deadline):
            live = by_age.popleft()
            if live.waiting:
                self._in_time.remove(live.subject, live, urgent=live.urgent)
                if stands:
                    expired.append(live)
                else:
                    self._late.put(live.subject, live, urgent=live.urgent)
        self._shed(expired, expired=True)
        if stands:
            room = SPARED * self._overload.room
            surplus = self._in_time.trim(len(self._in_time) - room) if len(self._in_time) > 2 * room else []
            self._shed(surplus, expired=False)
            if expired or surplus:
                self._overload.shed(now)
            return "newest of each"
        is_waiting_long = self._late or (by_age and now - by_age[0].arrived_at > FRESH_SHARE * deadline)
        return "newest" if is_waiting_long else "oldest"

    def _shed(self, flows: list[LiveFlow], *, expired: bool) -> None:
        self._leave(flows)
        if flows:
            self._on_shed(flows, expired)

    def _leave(self, flows: list[LiveFlow]) -> None:
        for live in flows:
            live.waiting = False
            del self._by_uid[live.flow.uid]
