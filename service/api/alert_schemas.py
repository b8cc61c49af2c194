"""The bodies of `/v1/alerts` and `/v1/drift`; the records of `service.alerts` and `service.drift` remain the authority
on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tapline.service.alerts.alert import AlertKind, Severity
from tapline.service.api.schemas import Body, Seen
from tapline.service.drift.model_drift import Against, Measure


class Alert(Body):
    """An alert of the history. What does not apply to its kind is left out."""

    number: int
    seen_us: Seen
    acknowledged_us: Annotated[int | None, Field(description="when somebody first said that they have seen to it")] = (
        None
    )
    acknowledged_by: Annotated[
        str | None,
        Field(
            description="name of the key with which they did, `-` where no key was wanted; left out where a release "
            "that did not keep it noted it"
        ),
    ] = None
    id: str
    time_us: Annotated[int, Field(description="when it was made; of past verdicts, when the flow or trace was")]
    rule: str
    severity: Severity
    kind: AlertKind
    message: str
    model: str
    version: str
    suppressed: Annotated[
        int, Field(description="matches since the last alert on this that made none of their own")
    ] = 0
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
    subject: Annotated[str, Field(description="of a trace: the host")] = ""
    subject_kind: str = ""
    flows: Annotated[int, Field(description="of a trace")] = 0
    suspicion: float | None = None
    suspicious: bool | None = None
    top_uids: Annotated[
        list[str], Field(default_factory=list, description="flows that a trace names, most important first")
    ]
    matches: Annotated[int, Field(description="what a rate counted")] = 0
    reason: Annotated[str, Field(description="of drift: what has moved")] = ""


class Alerts(Body):
    """A page of alerts."""

    alerts: list[Alert]
    next: Annotated[str | None, Field(description="give it as `cursor` for the next page; null at the end")]


class DriftMeasure(Body):
    """One comparison."""

    measure: Measure
    against: Against
    distance: Annotated[float, Field(ge=0, le=1, description="0: the same")]
    limit: Annotated[float, Field(description="beyond this somebody should look; 1: never")]
    reason: Annotated[str, Field(description="what moved, in words")]


class ModelDrift(Body):
    """What was seen of a model in the last 24 hours, beside what was expected."""

    model: str
    version: str
    start_us: int
    end_us: int
    verdicts: int
    measures: Annotated[list[DriftMeasure], Field(description="empty where there is too little to compare")]
    min_verdicts: Annotated[int, Field(description="so many verdicts are wanted: fewer are not compared")]
    problem: Annotated[str | None, Field(description="why `measures` is empty; null where it is not")]


class Drift(Body):
    """Of every model that gave live verdicts."""

    models: list[ModelDrift]
    problem: Annotated[str | None, Field(description="why nothing is compared; null where something is")]
