"""What goes back to sensors: verdicts on flows and traces, and that all before an end marker was read.

The contract, field by field, is in `zeek/README.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tapline.service.sources.bus.events import (
    CONTROL_TOPIC,
    LINES_VERSION,
    SCHEMA_VERSION,
    VERDICTS_TOPIC,
    Address,
    BusEvent,
    Count,
)


class VerdictRow(msgspec.Struct, frozen=True, gc=False):
    """One verdict on its way to Zeek, in the order of `Tapline::Verdict`."""

    uid: str
    community_id: str
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int
    proto: str
    nearest: str
    confidence: float
    unknown: bool
    final: bool
    model: str
    model_version: str

    def values(self) -> list[Any]:
        """The record by position, as the bus sends it."""
        return [
            self.uid, self.community_id, Address(self.orig_h), Count(self.orig_p), Address(self.resp_h),
            Count(self.resp_p), self.proto, self.nearest, self.confidence, self.unknown, self.final, self.model,
            self.model_version,
        ]  # fmt: skip

    def line(self) -> str:
        """The fields with bars between them."""
        return "|".join(
            (
                self.uid, self.community_id, self.orig_h, str(self.orig_p), self.resp_h, str(self.resp_p), self.proto,
                self.nearest, repr(self.confidence), "FT"[self.unknown], "FT"[self.final], self.model,
                self.model_version,
            )
        )  # fmt: skip


def verdict_lines_event(service: str, batch: int, rows: Sequence[VerdictRow]) -> BusEvent:
    """`Tapline::verdict_lines`: verdicts in one string; `Tapline::verdicts` where a name has what would part it."""
    lines = ";".join([row.line() for row in rows])
    if lines.count("|") != (len(VerdictRow.__struct_fields__) - 1) * len(rows) or lines.count(";") != len(rows) - 1:
        return verdicts_event(service, batch, rows)
    args = [Count(LINES_VERSION), Count(batch), service, lines]
    return BusEvent(VERDICTS_TOPIC, "Tapline::verdict_lines", args)


def verdicts_event(service: str, batch: int, rows: Sequence[VerdictRow]) -> BusEvent:
    """`Tapline::verdicts`: a batch of verdicts for Zeek."""
    args = [Count(SCHEMA_VERSION), Count(batch), service, [row.values() for row in rows]]
    return BusEvent(VERDICTS_TOPIC, "Tapline::verdicts", args)


class TraceVerdictRow(msgspec.Struct, frozen=True, gc=False):
    """One verdict on a trace on its way to Zeek, in the order of `Tapline::SuspectedTrace`.

    A sensor of an earlier package takes the first 14 fields, and passes over the rest.
    """

    subject: str
    subject_kind: str
    start_us: int
    end_us: int
    flows: int
    cut: int
    nearest: str
    confidence: float
    unknown: bool
    final: bool
    top_uids: list[str]
    top_shares: list[float]
    model: str
    model_version: str
    suspicion: float | None = None
    suspicious: bool | None = None

    def values(self) -> list[Any]:
        """The record by position, as the bus sends it; what is None is unset in Zeek."""
        return [
            self.subject, self.subject_kind, Count(self.start_us), Count(self.end_us), Count(self.flows),
            Count(self.cut), self.nearest, self.confidence, self.unknown, self.final, self.top_uids, self.top_shares,
            self.model, self.model_version, self.suspicion, self.suspicious,
        ]  # fmt: skip


def trace_verdicts_event(service: str, batch: int, rows: Sequence[TraceVerdictRow]) -> BusEvent:
    """`Tapline::trace_verdicts`: a batch of verdicts on traces for Zeek."""
    args = [Count(SCHEMA_VERSION), Count(batch), service, [row.values() for row in rows]]
    return BusEvent(VERDICTS_TOPIC, "Tapline::trace_verdicts", args)


def finished_ack_event(sensor: str) -> BusEvent:
    """`Tapline::finished_ack`: everything before the end marker has been read."""
    return BusEvent(CONTROL_TOPIC, "Tapline::finished_ack", [Count(SCHEMA_VERSION), sensor])
