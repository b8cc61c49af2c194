"""What all pages share: the service, what it remembers, and what was asked for in a page's address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import msgspec

from tapline.service.dashboard.activity import Activity
from tapline.service.history.database import SlowQueryError
from tapline.service.history.filters import FilterError, FlowFilter, time_us
from tapline.service.history.history import History, HistoryBusyError
from tapline.service.history.past import PastFlow
from tapline.service.jobs.job import JobError
from tapline.service.jobs.jobs import Jobs
from tapline.service.runtime import Service


class NoHistoryError(RuntimeError):
    """The service keeps none."""


ASKING = (FilterError, SlowQueryError, HistoryBusyError, JobError, NoHistoryError)
"""What may be wrong with a question; the message is for people."""


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
    """The filter of a page's address; times as people write them.

    Raises:
        FilterError: it cannot be understood.
    """
    given: dict[str, object] = {}
    for name, text in query.items():
        if name not in FlowFilter.__struct_fields__ or not text.strip():
            continue
        given[name] = time_us(text) if name in ("since_us", "until_us") else text.strip()
    try:
        return msgspec.convert(given, FlowFilter, strict=False)
    except msgspec.ValidationError as error:
        raise FilterError(f"{error}".replace("`$.", "`").replace(" - at", ", at")) from None
