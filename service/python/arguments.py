"""What the calls of the Python API take, and what they refuse at once: a wrong argument is told in one sentence, which
says what was expected, what came, by its type, and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from numbers import Integral
from typing import Any, TypeVar, get_args

from tapline.models.flow import Flow
from tapline.models.trace import Trace
from tapline.service.python.offline import Result

MAX_THREADS = 1024
MAX_PROCESSES = 256
_SHOWN_CHARS = 40

_FLOWS = "expected flows, those of tapline.read, a list of them, or results of tapline.classify"
_TRACES = "expected traces, as `traces` of the trace model makes them of flows"
_PATHS = "expected the path of a capture, or several"

_T = TypeVar("_T")


def check_choice(name: str, value: object, literal: Any) -> None:
    """Raises TypeError, ValueError: the value of an argument is none of a `Literal`."""
    choices = " or ".join(map(repr, get_args(literal)))
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {choices}, got {_type(value)}: give one of these")
    if value not in get_args(literal):
        raise ValueError(f"{name}: expected {choices}, got {value[:_SHOWN_CHARS]!r}: give one of these")


def check_truth(name: str, value: object) -> None:
    """Raises TypeError: the value of an argument is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {_type(value)}: give one of these")


def check_threads(value: object) -> None:
    """Raises TypeError, ValueError: it is no number of threads."""
    expected = f"threads: expected a number from 1 to {MAX_THREADS}, or 0 for one per core"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{expected}, got {_type(value)}: give an int")
    if not 0 <= int(value) <= MAX_THREADS:
        raise ValueError(f"{expected}, got one that is {'negative' if int(value) < 0 else 'larger'}: give another")


def check_processes(value: object) -> None:
    """Raises TypeError, ValueError: it is no number of processes."""
    expected = f"processes: expected a number from 1 to {MAX_PROCESSES}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{expected}, got {_type(value)}: give an int")
    if not 1 <= int(value) <= MAX_PROCESSES:
        raise ValueError(f"{expected}, got one that is {'larger' if int(value) > 1 else 'smaller'}: give another")


def flows_of(call: str, flows: Iterable[Flow | Result]) -> Iterator[Flow]:
    """The flows that a call was given, those of results, too.

    Raises:
        TypeError: it was given something else; of what is in an iterable, where it comes to that.
    """
    return _each(f"{call}: {_FLOWS}", flows, (Flow, Result), _flow)


def traces_of(call: str, traces: Iterable[Trace]) -> Iterator[Trace]:
    """The traces that a call was given.

    Raises:
        TypeError: as of `flows_of`.
    """
    return _each(f"{call}: {_TRACES}", traces, (Trace,), _trace)


def paths_of(path: object) -> Iterator[str]:
    """The paths that a call was given, one or several.

    Raises:
        TypeError: as of `flows_of`.
    """
    if isinstance(path, str | os.PathLike):
        return iter([os.fsdecode(path)])
    return _each(_PATHS, path, (), _path)


def expanded(path: str | os.PathLike[str]) -> str:
    """The path, with `~` as the home directory where nothing is called so."""
    name = os.fspath(path)
    return name if os.path.lexists(name) else os.path.expanduser(name)  # noqa: PTH111 - Path's fails without a home


def _each(expected: str, given: Any, single: tuple[type, ...], take: Callable[[str, Any], _T]) -> Iterator[_T]:
    """What is given, one by one as `take` takes it, which is told what was expected."""
    if isinstance(given, single):
        raise TypeError(f"{expected}, got a single {_type(given)}: give a list of it")
    if isinstance(given, str | bytes | os.PathLike):
        what = "give the path of a file" if isinstance(given, bytes) else "read a capture by tapline.read(path)"
        raise TypeError(f"{expected}, got {_type(given)}: {what}")
    try:
        iterator = iter(given)
    except TypeError:
        raise TypeError(f"{expected}, got {_type(given)}: give these") from None
    return map(partial(take, f"{expected}, got {_type(given)}"), iterator)


def _flow(said: str, each: object) -> Flow:
    if isinstance(each, Flow):
        return each
    if isinstance(each, Result):
        return each.flow
    what = "give the `flows` of each, or ask a trace model" if isinstance(each, Trace) else "give flows"
    raise TypeError(f"{said} of {_type(each)}: {what}")


def _trace(said: str, each: object) -> Trace:
    if isinstance(each, Trace):
        return each
    what = "make traces of flows first: model.traces(flows)" if isinstance(each, Flow | Result) else "give traces"
    raise TypeError(f"{said} of {_type(each)}: {what}")


def _path(said: str, each: object) -> str:
    if isinstance(each, str | os.PathLike):
        return os.fsdecode(each)
    what = "give flows to `predict` of a model" if isinstance(each, Flow | Result) else "give texts or pathlib.Path"
    raise TypeError(f"{said} of {_type(each)}: {what}")


def _type(value: object) -> str:
    return type(value).__name__
