"""What requests ask of verdicts, by the names of query parameters that all routes share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Query

from tapline.models.flow import MAX_NAME_CHARS
from tapline.service.api.errors import ApiError
from tapline.service.history.addresses import key_range
from tapline.service.history.filters import FilterError, FlowFilter, TraceFilter, time_us
from tapline.service.history.history_errors import HistoryBusyError, SlowQueryError
from tapline.service.history.past import MAX_PAGE

MAX_CURSOR_CHARS = 64

_TIME = "a time (2025-06-01T08:00:00Z), seconds since the epoch, or so long ago: 90s, 15m, 2h, 7d"
_Text = Query(min_length=1, max_length=256)

Since = Annotated[str | None, Query(max_length=40, description=f"only what was seen at or after {_TIME}")]
Until = Annotated[str | None, Query(max_length=40, description="only what was seen before: a time in the same forms")]
Host = Annotated[
    str | None,
    Query(min_length=1, max_length=64, description="only of this address, or of this network: 10.0.0.0/8"),
]
Label = Annotated[str | None, _Text, Query(description="only with this label; unknown for unknown ones")]
Nearest = Annotated[str | None, _Text, Query(description="only such whose nearest label this is, unknown ones too")]
Unknown = Annotated[bool | None, Query(description="only unknown ones, or only others")]
MinConfidence = Annotated[float | None, Query(ge=0, le=1, description="only with at least this confidence")]
MaxConfidence = Annotated[float | None, Query(ge=0, le=1, description="only with at most this confidence")]
ModelOf = Annotated[str | None, Query(min_length=1, max_length=64, description="only by this model")]
Source = Annotated[str | None, _Text, Query(description="only of this bus or capture")]
Final = Annotated[bool | None, Query(description="only final verdicts, or only early ones that are not replaced yet")]
Port = Annotated[int | None, Query(ge=0, le=65535, description="only with this port of the responder")]
SensorOf = Annotated[str | None, Query(min_length=1, max_length=MAX_NAME_CHARS, description="only of this sensor")]
UnexpectedPort = Annotated[bool | None, Query(description="only such on a port that says something else, or others")]
Uid = Annotated[str | None, Query(min_length=1, max_length=MAX_NAME_CHARS, description="only with this uid")]
SubjectOf = Annotated[str | None, Query(min_length=1, max_length=128, description="only of this subject")]
Suspicious = Annotated[bool | None, Query(description="only such that are suspicious, or that are not")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="most records in the answer")]
Cursor = Annotated[
    str | None, Query(max_length=MAX_CURSOR_CHARS, description="`next` of the page before, in the same order")
]
Ascending = Annotated[bool, Query(description="oldest, or smallest, first")]
Content = Annotated[bool, Query(description="with the first content bytes of flows, where the history keeps them")]


@contextlib.contextmanager
def history_errors() -> Iterator[None]:
    """Turn a filter that cannot be understood into 422, a slow question into 503 and a busy history into 503."""
    try:
        yield
    except FilterError as error:
        raise ApiError(422, "invalid", str(error)) from None
    except SlowQueryError as error:
        raise ApiError(503, "slow", str(error), retry=True) from None
    except HistoryBusyError as error:
        raise ApiError(503, "busy", str(error), retry=True) from None


def flows_asked(
    since: Since = None,
    until: Until = None,
    host: Host = None,
    port: Port = None,
    label: Label = None,
    nearest: Nearest = None,
    unknown: Unknown = None,
    min_confidence: MinConfidence = None,
    max_confidence: MaxConfidence = None,
    model: ModelOf = None,
    sensor: SensorOf = None,
    source: Source = None,
    unexpected_port: UnexpectedPort = None,
    final: Final = None,
    uid: Uid = None,
) -> FlowFilter:
    """The filter of flows that a request asks for."""
    with history_errors():
        return FlowFilter(
            **times_and_host(since, until, host),
            port=port,
            label=label,
            nearest=nearest,
            unknown=unknown,
            min_confidence=min_confidence,
            max_confidence=max_confidence,
            model=model,
            sensor=sensor,
            source=source,
            unexpected_port=unexpected_port,
            final=final,
            uid=uid,
        )


def traces_asked(
    since: Since = None,
    until: Until = None,
    host: Host = None,
    subject: SubjectOf = None,
    label: Label = None,
    nearest: Nearest = None,
    unknown: Unknown = None,
    min_confidence: MinConfidence = None,
    max_confidence: MaxConfidence = None,
    model: ModelOf = None,
    source: Source = None,
    suspicious: Suspicious = None,
    final: Final = None,
) -> TraceFilter:
    """The filter of traces that a request asks for."""
    with history_errors():
        return TraceFilter(
            **times_and_host(since, until, host),
            subject=subject,
            label=label,
            nearest=nearest,
            unknown=unknown,
            min_confidence=min_confidence,
            max_confidence=max_confidence,
            model=model,
            source=source,
            suspicious=suspicious,
            final=final,
        )


FlowsAsked = Annotated[FlowFilter, Depends(flows_asked)]
TracesAsked = Annotated[TraceFilter, Depends(traces_asked)]


def times_and_host(since: str | None, until: str | None, host: str | None) -> dict[str, Any]:
    """The fields of a filter that every kind of record has.

    Raises:
        FilterError: one cannot be understood.
    """
    if host is not None:
        key_range(host)
    return {
        "since_us": None if since is None else time_us(since),
        "until_us": None if until is None else time_us(until),
        "host": host,
    }
