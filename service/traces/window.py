"""The windows of one subject, and the flows of one window: plain bookkeeping, told what to do by `TraceWindows`."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from tapline.models.trace import FlowOrder
from tapline.service.traces.trace_verdict import TraceFlow

NEVER_US = 2**62
"""The end of a window that has none."""


class SubjectKey(NamedTuple):
    """A subject as one source sees it: two sites may use the same private addresses."""

    source: str
    subject: str


@dataclass(slots=True)
class Window:
    """The newest flows of a window by uid, how many older ones were cut, and what early verdicts said of it: the last
    label, and whether it was suspicious."""

    flows: dict[str, TraceFlow] = field(default_factory=dict)
    cut: int = 0
    early_label: str | None = None
    early_suspicious: bool = False
    _oldest: list[tuple[FlowOrder, str]] = field(default_factory=list)

    def insert(self, flow: TraceFlow, max_flows: int) -> TraceFlow | None:
        """Take a flow; where there are then too many, the oldest leaves, and is returned."""
        self.flows[flow.uid] = flow
        if self._oldest:
            heappush(self._oldest, (flow.order, flow.uid))
        if len(self.flows) <= max_flows:
            return None
        return self._cut_oldest(max_flows)

    def _cut_oldest(self, max_flows: int) -> TraceFlow:
        if not self._oldest or len(self._oldest) > 2 * max_flows + 2:
            self._oldest = [(each.order, each.uid) for each in self.flows.values()]
            heapify(self._oldest)
        self.cut += 1
        while True:
            order, uid = heappop(self._oldest)
            found = self.flows.get(uid)
            if found is not None and found.order == order:
                return self.flows.pop(uid)


@dataclass(slots=True)
class SubjectWindows:
    """The windows of a subject that are open, by their number from `base_us` on, the start of its first flow.

    Windows below `next_index` are closed. Until one is, an older flow moves the beginning of them all back.
    """

    base_us: int
    window_us: int
    next_index: int = 0
    windows: dict[int, Window] = field(default_factory=dict)

    def index_of(self, start_us: int) -> int:
        """The window in which a flow starts."""
        return (start_us - self.base_us) // self.window_us if self.window_us else 0

    def start_us(self, index: int) -> int:
        """When a window starts."""
        return self.base_us + index * self.window_us

    def end_us(self, index: int) -> int:
        """When a window ends, `NEVER_US` where everything is one window."""
        return self.base_us + (index + 1) * self.window_us if self.window_us else NEVER_US

    def window_at(self, start_us: int) -> Window | None:
        """The open window that starts then."""
        index = self.index_of(start_us)
        return self.windows.get(index) if self.start_us(index) == start_us else None

    def moves_back(self, start_us: int) -> bool:
        """Whether a flow that starts then is the first of all."""
        return start_us < self.base_us and not self.next_index

    def move_back(self, start_us: int, max_flows: int) -> list[TraceFlow]:
        """Count windows from `start_us` on, put the flows where they belong now, and return those that had to leave.

        What a window cut before stays with its oldest flow, since nobody knows any more when it started.
        """
        windows, self.windows, self.base_us = list(self.windows.values()), {}, start_us
        cut = []
        for window in windows:
            for flow in window.flows.values():
                place = self.windows.setdefault(self.index_of(flow.start_us), Window())
                left = place.insert(flow, max_flows)
                if left is not None:
                    cut.append(left)
            if window.cut and window.flows:
                oldest_us = min(flow.start_us for flow in window.flows.values())
                self.windows[self.index_of(oldest_us)].cut += window.cut
        return cut
