"""What a request for verdicts may choose: whether ports are read, by which trace models it wants traces, and whether
the answer holds content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query

from tapline.service.api.errors import ApiError
from tapline.service.api.models_route import model_errors
from tapline.service.inference.trace_loading import NO_TRACES
from tapline.service.results.sharing import Sharing
from tapline.service.settings import Ports
from tapline.service.trace_models import TraceModels

MAX_TRACE_MODELS = 64

ReadPorts = Annotated[
    Ports | None, Query(description="whether verdicts on flows read ports; as the service is set where not given")
]
TraceNames = Annotated[
    list[str] | None,
    Query(
        max_length=MAX_TRACE_MODELS,
        description="loaded trace models, repeated or with commas between them, or none for no traces; all that are "
        "loaded where not given",
    ),
]
WithContent = Annotated[
    bool,
    Query(description="whether flows in the answer hold content bytes and packet heads; they are empty otherwise"),
]


@dataclass(frozen=True)
class Choice:
    """`ports` as of `Batcher.submit`; `traces`: names of the trace models, None for all; `sharing` makes of each flow
    what the answer holds of it.
    """

    ports: bool | None
    traces: frozenset[str] | None
    sharing: Sharing


def choice_of(models: TraceModels, ports: Ports | None, traces: list[str] | None, *, content: bool) -> Choice:
    """What a request chose.

    Raises:
        ApiError: 404 a trace model that is not loaded, 422 `none` beside others.
    """
    sharing = Sharing(content=content)
    reads = None if ports is None else ports == "on"
    names = frozenset(filter(None, (name.strip() for text in traces or () for name in text.split(","))))
    if not names:
        return Choice(reads, None, sharing)
    if names == {NO_TRACES}:
        return Choice(reads, frozenset(), sharing)
    if NO_TRACES in names:
        raise ApiError(422, "bad_traces", f"give traces={NO_TRACES} alone, or leave it out")
    with model_errors():
        models.check_chosen(names)
    return Choice(reads, names, sharing)
