"""What a report's plots and lists are drawn from: flows over time by label, confidences, hosts; each bounded whatever
the number of flows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict

MAX_BINS = 120
"""Most bins of time; where traffic takes longer than these, two become one."""

CONFIDENCE_BINS = 20
MAX_HOSTS = 4096
"""Hosts counted: those that are seen first; flows of others are counted as of others."""


class TimeBins:
    """Flows by label over time, in at most `MAX_BINS` bins of one width, a second or a power of two of them."""

    def __init__(self) -> None:
        self.width_us = 1_000_000
        self.bins: dict[int, Counter[str]] = {}

    def add(self, time_us: int, label: str) -> None:
        """Count a flow."""
        self.bins.setdefault(time_us // self.width_us, Counter())[label] += 1
        while len(self.bins) > 1 and max(self.bins) - min(self.bins) >= MAX_BINS:
            self._double()

    def _double(self) -> None:
        merged: dict[int, Counter[str]] = {}
        for number, counts in self.bins.items():
            merged.setdefault(number // 2, Counter()).update(counts)
        self.width_us *= 2
        self.bins = merged


@dataclass
class HostAccount:
    """What one host took part in, as originator or responder."""

    host: str
    flows: int = 0
    ip_bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)


class PageAccount:
    """Counts classified flows as they pass."""

    def __init__(self) -> None:
        self.times = TimeBins()
        self.confidences = [0] * CONFIDENCE_BINS
        self.first_us: int | None = None
        self.last_us = 0
        self.flows_of_other_hosts = 0
        self._hosts: dict[str, HostAccount] = {}

    def add(self, flow: Flow, verdict: Verdict) -> None:
        """Count a flow."""
        self.times.add(flow.start_us, verdict.label)
        self.confidences[min(int(verdict.confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1
        self.first_us = flow.start_us if self.first_us is None else min(self.first_us, flow.start_us)
        self.last_us = max(self.last_us, flow.start_us + flow.duration_us)
        for host in {flow.orig_h, flow.resp_h}:
            self._count_host(host, flow, verdict)

    def _count_host(self, host: str, flow: Flow, verdict: Verdict) -> None:
        account = self._hosts.get(host)
        if account is None:
            if len(self._hosts) >= MAX_HOSTS:
                self.flows_of_other_hosts += 1
                return
            account = self._hosts[host] = HostAccount(host)
        account.flows += 1
        account.ip_bytes += flow.orig_ip_bytes + flow.resp_ip_bytes
        account.labels[verdict.label] += 1

    def hosts(self, limit: int) -> list[HostAccount]:
        """The hosts of most flows, most first."""
        return sorted(self._hosts.values(), key=lambda account: (-account.flows, account.host))[:limit]

    @property
    def host_count(self) -> int:
        """Hosts counted."""
        return len(self._hosts)
