"""Refuses query parameters that a route does not have, and one value's second: a misspelt or overridden filter must not
return something else than was asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from tapline.models.foreign_text import clean
from tapline.service.api.errors import ApiError

API = "/v1/"
MAX_SHOWN_CHARS = 64


async def known_query(request: Request) -> None:
    """A dependency of all routes.

    Raises:
        ApiError: 422, a route of the API has no parameter of that name, or takes one value of it and got several.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or not route.path.startswith(API) or not request.query_params:
        return
    parameters = dict(sorted(_parameters(route.dependant)))
    unknown = [name for name in request.query_params if name not in parameters]
    if unknown:
        names = list(parameters)
        raise ApiError(422, "unknown_parameter", "; ".join(_said(name, names) for name in unknown[:5]))
    given = request.query_params.multi_items()
    repeated = [
        name for name, annotation in parameters.items()
        if not _takes_several(annotation) and sum(name == other for other, _ in given) > 1
    ]  # fmt: skip
    if repeated:
        raise ApiError(422, "repeated_parameter", f"{', '.join(repeated)}: expected one value, got several")


def _parameters(dependant: Dependant) -> Iterator[tuple[str, Any]]:
    """The parameters of a route and of all that it depends on, and their annotations."""
    yield from ((field.alias, field.field_info.annotation) for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _parameters(inner)


def _takes_several(annotation: Any) -> bool:
    """Whether it is a list, or a union with one."""
    return any(get_origin(part) is list for part in (annotation, *get_args(annotation)))


def _said(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names, n=1)
    expected = f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none'}"
    return f"{clean(name, MAX_SHOWN_CHARS)}: no such parameter: {expected}"
