"""Refuses query parameters that a route does not have: a misspelt filter must not return everything."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

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
        ApiError: 422, a route of the API has no parameter of that name.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or not route.path.startswith(API) or not request.query_params:
        return
    names = sorted(set(_names(route.dependant)))
    unknown = [name for name in request.query_params if name not in names]
    if unknown:
        raise ApiError(422, "unknown_parameter", "; ".join(_said(name, names) for name in unknown[:5]))


def _names(dependant: Dependant) -> Iterator[str]:
    """The parameters of a route and of all that it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _names(inner)


def _said(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names, n=1)
    expected = f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none'}"
    return f"{clean(name, MAX_SHOWN_CHARS)}: no such parameter: {expected}"
