"""Where a command writes its result: standard output, or a file that is there only once it is whole."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from tapline.service.command.streams import fail

EXIT_USAGE = 2

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
        fail(f"{output}: is an input, too: write the result elsewhere", EXIT_USAGE)
    whole = not output.exists() or output.is_file()  # a device or a pipe is written as it is
    target = output.with_name(f".{output.name}.{os.getpid()}") if whole else output
    try:
        file = target.open("w", encoding="utf-8", newline="")
    except OSError as error:
        fail(f"{output}: cannot write it: {error.strerror}", EXIT_USAGE)
    try:
        with file:
            yield file
        if whole:
            target.replace(output)
    finally:
        if whole:
            target.unlink(missing_ok=True)
