"""The account of an output: what became of its records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tapline.service.sinks.output_url import RecordKind


@dataclass
class OutputCounts:
    """What became of the records of an output: `received` + `recovered` (from the spool of an earlier run) = `written`
    + `dropped` (for want of room) + `failed` (never to be taken) + those that wait. `dropped_by` kind adds up to
    `dropped`."""

    received: int = 0
    recovered: int = 0
    written: int = 0
    dropped: int = 0
    failed: int = 0
    dropped_by: Counter[RecordKind] = field(default_factory=Counter)
