"""What a request for verdicts may choose: whether ports are read and a student answers, by which trace models it wants
traces, and whether the answer holds content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query

from tapline.service.api.errors import ApiError
from tapline.service.api.models_route import model_errors
from tapline.service.engines.engine import Cascade, Ports
from tapline.service.inference.trace_loading import NO_TRACES
from tapline.service.results.sharing import Sharing
from tapline.service.trace_models import TraceModels

MAX_TRACE_MODELS = 64

ReadPorts = Annotated[
    Ports | None, Query(description="whether verdicts on flows read ports; as the service is set where not given")
]
MayAnswer = Annotated[
    Cascade | None,
    Query(
        description="whether the model's student answers the flows that it is sure of; as the service is set where not "
        "given. It answers none where a trace model that is loaded reads the network's embeddings"
    ),
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
    """`ports` and `cascade` as of `Batcher.submit`; `traces`: names of the trace models, None for all; `sharing` makes
    of each flow what the answer holds of it.
    """

    ports: bool | None
    cascade: bool | None
    traces: frozenset[str] | None
    sharing: Sharing


def choice_of(
    models: TraceModels, ports: Ports | None, cascade: Cascade | None, traces: list[str] | None, *, content: bool
) -> Choice:
    """What a request chose.

    Raises:
        ApiError: 404 a trace model that is not loaded, 422 `none` beside others.
    """
    sharing = Sharing(content=content)
    reads, answers = (None if each is None else each == "on" for each in (ports, cascade))
    names = frozenset(filter(None, (name.strip() for text in traces or () for name in text.split(","))))
    if not names:
        return Choice(reads, answers, None, sharing)
    if names == {NO_TRACES}:
        return Choice(reads, answers, frozenset(), sharing)
    if NO_TRACES in names:
        raise ApiError(422, "bad_traces", f"give traces={NO_TRACES} alone, or leave it out")
    with model_errors():
        models.check_chosen(names)
    return Choice(reads, answers, names, sharing)
