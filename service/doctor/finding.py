"""What a check is and what it finds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Outcome = Literal["ok", "warning", "problem", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was found, and a sentence on what to do where it is not well."""

    what: str
    outcome: Outcome
    found: str
    advice: str = ""


class Check(Protocol):
    """One kind of check. It changes nothing on the machine, and ends within its own bounds of time."""

    what: str

    def run(self) -> Iterator[Finding]:
        """Look; at least one finding."""
        ...


class CommandError(RuntimeError):
    """A command could not be run to its end; the message says why."""


def output_of(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """The exit status of a command, and what it wrote.

    Raises:
        CommandError: it cannot be started, or took longer than so many seconds.
    """
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"it did not end within {seconds:g} seconds") from None
    except OSError as error:
        raise CommandError(f"it cannot be run: {error.strerror}") from None
    return ended.returncode, ended.stdout.decode("utf-8", "replace").strip()
