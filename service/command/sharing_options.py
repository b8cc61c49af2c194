"""Options of what is given away of records: no payload, other addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapline.service.command.streams import fail
from tapline.service.results.anonymise import AnonymiseKeyError, Anonymiser, read_key
from tapline.service.results.sharing import Sharing

EXIT_USAGE = 2

NoContent = Annotated[
    bool,
    typer.Option("--no-content", help="leave payload out: content bytes and packet heads are empty in the result"),
]
Anonymise = Annotated[
    bool,
    typer.Option(
        "--anonymise",
        help="replace addresses by others that share prefixes as the real ones do, and uids; no payload either",
    ),
]
AnonymiseKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="key of --anonymise, of 64 hex digits, so that another run replaces alike [default: by chance, forgotten]",
    ),
]


def chosen_sharing(no_content: bool, anonymise: bool, key: Path | None) -> Sharing:
    """What is given away of records by the options of a command; with a key that cannot be read it ends."""
    if key is not None and not anonymise:
        fail("--anonymise-key without --anonymise: give both", EXIT_USAGE)
    try:
        anonymiser = Anonymiser(read_key(key) if key is not None else None) if anonymise else None
    except AnonymiseKeyError as error:
        fail(str(error), EXIT_USAGE)
    return Sharing(content=not no_content, anonymiser=anonymiser)
