"""What all pages share: the service, what it remembers, and what was asked for in a page's address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlencode

import msgspec

from tapline.service.dashboard.activity import Activity
from tapline.service.history.filters import AlertFilter, FilterError, FlowFilter, time_us
from tapline.service.history.history_errors import HistoryBusyError, SlowQueryError
from tapline.service.history.past import PastFlow
from tapline.service.jobs.job import JobError
from tapline.service.jobs.jobs import Jobs
from tapline.service.runtime import Service

if TYPE_CHECKING:
    from tapline.service.history.history import History


class NoHistoryError(RuntimeError):
    """The service keeps none."""


ASKING = (FilterError, SlowQueryError, HistoryBusyError, JobError, NoHistoryError)
"""What may be wrong with a question; the message is for people."""


Filter = TypeVar("Filter", FlowFilter, AlertFilter)


@dataclass
class Board:
    """The service as its pages see it."""

    service: Service
    activity: Activity

    @property
    def history(self) -> History:
        """What was decided live.

        Raises:
            NoHistoryError: the service was told to keep nothing.
        """
        if self.service.history is None:
            raise NoHistoryError("no history is kept: start without --history none")
        return self.service.history

    @property
    def jobs(self) -> Jobs:
        """Captures that were handed in."""
        return self.service.jobs


def address(page: str, query: Mapping[str, object]) -> str:
    """The path of a page that shows what is asked for; what is None or empty is left out."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{page}?{urlencode(given)}" if given else page


def flow_address(flow: PastFlow, job: str | None) -> str:
    """The page of a flow."""
    return address("/flow", {"job": job, "number": flow.number})


def flow_filter(query: Mapping[str, str]) -> FlowFilter:
    """The filter of flows of a page's address.

    Raises:
        FilterError: it cannot be understood.
    """
    return asked(query, FlowFilter)


def asked(query: Mapping[str, str], kind: type[Filter]) -> Filter:
    """The filter of a page's address; times as people write them.

    Raises:
        FilterError: it cannot be understood.
    """
    given: dict[str, object] = {}
    for name, text in query.items():
        if name not in kind.__struct_fields__ or not text.strip():
            continue
        given[name] = time_us(text) if name in ("since_us", "until_us") else text.strip()
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise FilterError(_expected(f"{error}", kind)) from None


def _expected(problem: str, kind: type[msgspec.Struct]) -> str:
    """What is wrong with a filter; of a field that is one of some words, these."""
    named = re.search(r"`\$\.(\w+)`", problem)
    for wanted in get_args(get_type_hints(kind)[named[1]]) if named is not None else ():
        if named is not None and get_origin(wanted) is Literal:
            return f"`{named[1]}`: expected one of {', '.join(map(str, get_args(wanted)))}"
    return problem.replace("`$.", "`").replace(" - at", ", at")
