"""The command `tapline keys`: makes keys, each shown once, and keeps their hashes in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from tapline.service.access.key_file import add_key, keys_of, remove_key
from tapline.service.access.keys import KeysError, make_key
from tapline.service.access.scopes import Scope
from tapline.service.command.console import make_console
from tapline.service.command.streams import say

EXIT_FAILED = 1

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of a service (--keys-file).")

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="the file of `serve --keys-file`", envvar="TAPLINE_KEYS_FILE")
]
Name = Annotated[str, typer.Option(help="for whom the key is")]


@app.command("add")
def add(
    name: Name,
    scope: Annotated[Scope, typer.Option(help="read; classify: that, and captures and flows; admin: everything")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="the file of `serve --keys-file`; without one the line for TAPLINE_KEYS is printed",
            envvar="TAPLINE_KEYS_FILE",
        ),
    ] = None,
) -> None:
    """Make a key: it is printed once, on standard output, and its hash is kept; a running service takes it at once."""
    try:
        key, text = make_key(name, scope)
        if file is not None:
            add_key(file, key)
    except KeysError as error:
        _fail(str(error))
    typer.echo(text)
    if file is None:
        say(f"for TAPLINE_KEYS, or --keys: {key.line()}")


@app.command("list")
def list_keys(file: File) -> None:
    """Show names and scopes, and how hashes begin."""
    table = Table("name", "scope", "sha256", box=None, pad_edge=False)
    try:
        for key in keys_of(file):
            table.add_row(key.name, key.scope, f"{key.digest.hex()[:12]}…")
    except KeysError as error:
        _fail(str(error))
    make_console().print(table)


@app.command("remove")
def remove(name: Name, file: File) -> None:
    """Revoke a key: a service that runs refuses it at once, and ends its sessions."""
    try:
        remove_key(file, name)
    except KeysError as error:
        _fail(str(error))
    say(f"{name} opens nothing any more")


def _fail(message: str) -> NoReturn:
    say(message)
    raise typer.Exit(EXIT_FAILED)
