"""The record of an alert: what fired, about what, and the keys that join it with other records."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["low", "medium", "high", "critical"]
"""How much an alert matters, in rising order."""

AlertKind = Literal["flow", "trace", "rate", "drift"]
"""What an alert is about: one flow, one trace, many of them in a time, or what a model sees."""


class Alert(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An alert that a rule made. What does not apply to its kind has its default and is left out of JSON.

    `id` is unique; `time_us` is when it was made, in microseconds since 1970, by the service's clock, and for verdicts
    out of the past that of the flow or trace. `suppressed` counts the matches of the rule on the same identifier that
    made no alert of their own since the last one. `source` is where the flow came from (the URL of a bus, the name of
    an input), `sensor` what the sensor calls itself. `start_us` and `end_us` are those of the flow, of the window of
    the trace, or of the time over which a rate was counted; `matches` is what was counted. `top_uids` are the flows
    that a trace names, most important first. `reason` says of drift what has moved.
    """

    id: str
    time_us: int
    rule: str
    severity: Severity
    kind: AlertKind
    message: str
    model: str
    version: str
    suppressed: int = 0
    source: str = ""
    sensor: str = ""
    label: str = ""
    nearest: str = ""
    confidence: float | None = None
    unknown: bool = False
    final: bool = True
    start_us: int = 0
    end_us: int = 0
    uid: str = ""
    community_id: str = ""
    proto: str = ""
    orig_h: str = ""
    orig_p: int | None = None
    resp_h: str = ""
    resp_p: int | None = None
    server_name: str = ""
    port_label: str = ""
    unexpected_port: bool = False
    subject: str = ""
    subject_kind: str = ""
    flows: int = 0
    suspicion: float | None = None
    suspicious: bool | None = None
    top_uids: list[str] = []
    matches: int = 0
    reason: str = ""
