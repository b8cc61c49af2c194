"""What `GET /v1/live` answers: sensors, queues, traces, history, outputs, alert rules, and the parts of the service."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tapline.service.api.schemas import Body


class Sensor(Body):
    """The account of one sensor on a bus; counters are the service's own but for those under `zeek`."""

    name: str
    format: Annotated[int, Field(description="of the events that its flows come in, 0 before the first")] = 0
    hint: Annotated[str | None, Field(description="what to do about that format, null where it is the newest")] = None
    flows: int
    early: int
    missed: Annotated[int, Field(description="flows that never came, by the sensor's numbering")]
    restarts: int
    lag_seconds: Annotated[
        float | None, Field(description="how far behind this machine's clock its packets were, by its last counters")
    ] = None
    zeek: Annotated[dict[str, float] | None, Field(description="Zeek's own counters, as it last sent them")]


class Bus(Body):
    """A connection to a sensor's bus."""

    url: str
    connected: bool
    peer_version: str
    reason: Annotated[str, Field(description="why it is not connected")]
    connections: int
    refused: Annotated[int, Field(description="events and flows that were malformed, or of another version")]
    faults: Annotated[int, Field(description="events that set off a fault of the service's own")]
    pending_verdicts: Annotated[int, Field(description="verdicts that Zeek has not acknowledged yet")]
    sensors: list[Sensor]


class Subject(Body):
    """A subject that overload shed, with how many of its flows."""

    subject: str
    flows: int


class LiveTraces(Body):
    """The windows of one trace model: those open now, and what became of flows and windows."""

    model: str
    version: str
    open_windows: int
    open_flows: int
    counts: dict[str, int]


class Part(Body):
    """A long-lived task of the service; one that ends by an error is started again."""

    name: str
    running: bool
    deaths: int
    reason: Annotated[str, Field(description="the error of its last death, by name")]


class HistoryState(Body):
    """The history: where it is, and what became of verdicts and of flows that can get none."""

    place: str
    kept: int
    shed: Annotated[int, Field(description="because too many waited to be written")]
    failed: Annotated[int, Field(description="because the database refused them")]
    pending: int
    used_bytes: int
    problem: Annotated[str | None, Field(description="why nothing can be kept now")]
    recent_sensors: Annotated[
        dict[str, int] | None,
        Field(
            description="verdicts on flows of the last ten minutes by sensor, of all services that share the "
            "history, none for those of a replay; null where it cannot say so at once"
        ),
    ]


class OutputState(Body):
    """An output, and what became of its records: `received` and `recovered` are all the others together."""

    name: str
    received: int
    recovered: Annotated[int, Field(description="that an earlier run had left in the spool")]
    written: int
    dropped: Annotated[int, Field(description="for want of room")]
    failed: Annotated[int, Field(description="because the output will never take them")]
    dropped_by: Annotated[dict[str, int], Field(description="what was dropped by kind: flows, traces, alerts")]
    queued: Annotated[int, Field(description="that wait in memory")]
    spooled: Annotated[int, Field(description="that wait on disk")]
    problem: Annotated[str | None, Field(description="why nothing can be sent now, or that records are dropped")]


class AlertRulesState(Body):
    """The alert rules that are at work."""

    path: str
    rules: Annotated[int, Field(description="at work")]
    problem: Annotated[str | None, Field(description="what is wrong with their newest version, which is not at work")]


class Live(Body):
    """The live path: what came, what became of it, and where it comes from."""

    counts: dict[str, int]
    waiting: int
    shed_by_subject: list[Subject]
    buses: list[Bus]
    traces: Annotated[list[LiveTraces], Field(description="one for each trace model")]
    parts: Annotated[list[Part], Field(description="the long-lived tasks of the service")]
    history: Annotated[HistoryState | None, Field(description="null where none is kept")]
    outputs: list[OutputState]
    alert_rules: Annotated[AlertRulesState | None, Field(description="null where there are none")]
