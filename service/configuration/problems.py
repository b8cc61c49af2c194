"""What is wrong with a configuration, in sentences, and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tapline.models.foreign_text import clean

_SHOWN_CHARS = 64


class ConfigurationError(ValueError):
    """A configuration cannot be used; `problems` are sentences that say where, what was expected and what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


def unknown(name: str, known: Iterable[str]) -> str:
    """`prot: no such setting: did you mean port?`, with the nearest of the known names if one is near."""
    by_letters = {_letters(other): other for other in known}
    nearest = difflib.get_close_matches(_letters(name), by_letters, n=1)
    meant = f": did you mean {by_letters[nearest[0]]}?" if nearest else ": see `tapline serve --help`"
    return f"{clean(name, _SHOWN_CHARS)}: no such setting{meant}"


def _letters(name: str) -> str:
    return name.lower().replace("-", "_")
