"""What a schema finds wrong with a value, in words for people: what was expected and what came. The one place where
pydantic's own words are put into ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tapline.models.foreign_text import clean

MAX_SHOWN_CHARS = 40

_KINDS = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "path": "a path",
    "dict": "a table",
    "model": "a table",
    "date": "a date such as 2026-12-31, or a time with its offset such as 2026-12-31T18:00:00Z",
    "datetime": "a date such as 2026-12-31, or a time with its offset such as 2026-12-31T18:00:00Z",
}
"""What each type of pydantic's is, by the first word of its errors' types."""

_TYPE = re.compile(r"(?P<kind>[a-z]+)(?:_attributes)?_(?:type|sub_type|parsing|parsing_size|from_float|from_date\w*)")
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} in a list",
    "too_long": "at most {max_length} in a list",
    "finite_number": "a finite number",
}
_SHOULD = re.compile(r"\A(?:Input|String|List|Value|[A-Z]\w+) should (?:be |have )?")


class ProblemsError(ValueError):
    """Several things are wrong with one value: a sentence for each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


def in_words(found: Mapping[str, Any]) -> str:
    """What was expected, of one of pydantic's `errors()`; a validator's own sentence as it is."""
    kind, context = found["type"], found.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]) if "error" in context else found["msg"].removeprefix("Value error, ")
    if (form := _BOUNDS.get(kind)) is not None:
        return f"expected {form.format(**{name: _number(value) for name, value in context.items()})}"
    if kind == "missing":
        return "expected a value, there is none"
    if kind == "extra_forbidden":
        return "there is no such name here"
    named = _TYPE.fullmatch(kind)
    if named is not None and named["kind"] in _KINDS:
        return f"expected {_KINDS[named['kind']]}"
    return _SHOULD.sub("expected ", found["msg"])


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """As `in_words`, one for each thing that a validator found wrong."""
    error = found.get("ctx", {}).get("error")
    yield from error.problems if isinstance(error, ProblemsError) else [in_words(found)]


def shown(value: object) -> str:
    """A value as it is shown in a message: short, and as TOML writes it."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return clean(text.lower() if isinstance(value, bool) else text, MAX_SHOWN_CHARS)


def _number(value: object) -> object:
    return f"{value:.12g}" if isinstance(value, float) else value
