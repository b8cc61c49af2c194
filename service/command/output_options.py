"""Options of commands that write records of captures: where to, and what of them is given away."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from tapline.service.command.console import say
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
Output = Annotated[Path | None, typer.Option("--output", "-o", help="write to this file instead of standard output")]


@contextlib.contextmanager
def opened(output: Path | None, inputs: list[str], *, as_utf8: bool = False) -> Iterator[TextIO]:
    """Standard output, or a file that takes its name only when it is whole; an input is never written over.

    Files are in UTF-8; `as_utf8` has standard output so, whatever the terminal speaks, as programs expect it.
    """
    if output is None:
        if as_utf8 and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="strict")
        yield sys.stdout
        return
    if any(Path(name).exists() and output.exists() and output.samefile(name) for name in inputs):
        _refuse(f"{output}: is an input, too: write the result elsewhere")
    whole = not output.exists() or output.is_file()  # a device or a pipe is written as it is
    target = output.with_name(f".{output.name}.{os.getpid()}") if whole else output
    try:
        file = target.open("w", encoding="utf-8", newline="")
    except OSError as error:
        _refuse(f"{output}: cannot write it: {error.strerror}")
    try:
        with file:
            yield file
        if whole:
            target.replace(output)
    finally:
        if whole:
            target.unlink(missing_ok=True)


def sharing_of(no_content: bool, anonymise: bool, key: Path | None) -> Sharing:
    """What is given away of records by the options of a command; with a key that cannot be read it ends."""
    if key is not None and not anonymise:
        _refuse("--anonymise-key without --anonymise: give both")
    try:
        anonymiser = Anonymiser(read_key(key) if key is not None else None) if anonymise else None
    except AnonymiseKeyError as error:
        _refuse(str(error))
    return Sharing(content=not no_content, anonymiser=anonymiser)


def _refuse(message: str) -> NoReturn:
    say(message)
    raise typer.Exit(EXIT_USAGE)
