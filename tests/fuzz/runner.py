"""Runs fuzz targets for a time: `python -m tests.fuzz SECONDS [TARGET...]`, and in the suite for a few seconds each.

A case follows from its seed alone: what failed is tried again with `--seed`.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

CASE_SECONDS = 30
"""One case that takes longer hangs."""

_NOT_TARGETS = {"__init__", "__main__", "mutation", "runner"}


class FaultError(AssertionError):
    """A case found a fault; the message names target and seed."""


class HangError(BaseException):
    """A case took too long; no handler of the code that hangs shall catch it."""


@dataclass
class Tally:
    """What a target has done."""

    target: str
    cases: int
    seconds: float


def targets() -> list[str]:
    """The names of all targets."""
    names = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return sorted(name for name in names - _NOT_TARGETS if not name.startswith("test_"))


def run(target: str, seconds: float, first_seed: int) -> Tally:
    """Try cases of a target, at least one, until the time is over.

    Raises:
        FaultError: a case raised.
    """
    case = importlib.import_module(f"tests.fuzz.{target}").case
    started = time.monotonic()
    cases = 0
    while not cases or time.monotonic() - started < seconds:
        seed = first_seed + cases
        try:
            with _deadline():
                case(random.Random(seed))
        except (Exception, HangError) as error:
            raise FaultError(f"{target}, seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
        cases += 1
    return Tally(target, cases, time.monotonic() - started)


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def hangs(number: int, frame: FrameType | None) -> None:
        raise HangError(f"longer than {CASE_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(CASE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
