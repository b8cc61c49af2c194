"""The command `tapline history`: what the history holds, and its export. It reads beside a service that writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import sqlalchemy as sql
import typer
from sqlalchemy.exc import DBAPIError

from tapline.service.alerts.alert import Severity
from tapline.service.command.settings_options import Config, configuration
from tapline.service.command.streams import say
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.history.addresses import key_range
from tapline.service.history.database import Database
from tapline.service.history.export import ExportError, Filter, Kind, check_format, rows, write
from tapline.service.history.filters import AlertFilter, FilterError, FlowFilter, TraceFilter, time_us
from tapline.service.history.history_errors import HistoryError, SlowQueryError
from tapline.service.history.history_tables import alerts, flows, traces, tries
from tapline.service.process.process_title import hide_passwords

EXIT_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(no_args_is_help=True, help="Look into the history of verdicts, and export it.")

Place = Annotated[
    str | None,
    typer.Option(
        "--history",
        help="sqlite (history.db in the data directory) or a URL [default: as of `serve`; env TAPLINE_HISTORY]",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="the service's data directory [default: as of `serve`; env TAPLINE_DATA_DIR]"),
]


def _text(words: str) -> Any:
    return typer.Option(help=words, show_default=False)


@app.command("show")
def show(place: Place = None, data_dir: DataDir = None, config: Config = None) -> None:
    """Tell what the history holds: how much, and since when."""
    with opened(place, data_dir, config) as database, database.reading(60) as connection:
        for name, table, at in (
            ("flows", flows, flows.c.seen_us),
            ("traces", traces, traces.c.seen_us),
            ("alerts", alerts, alerts.c.seen_us),
            ("minutes in which hosts tried what got no verdict", tries, tries.c.minute_us),
        ):
            if not database.has(table):
                typer.echo(
                    f"{name}: none before the next start of the service, which brings this history to its version"
                )
                continue
            count = connection.execute(sql.select(sql.func.count()).select_from(table)).scalar() or 0
            first, last = connection.execute(sql.select(sql.func.min(at), sql.func.max(at))).one()
            span = f", {_shown(first)} to {_shown(last)}" if count else ""
            typer.echo(f"{name}: {count}{span}")
        typer.echo(f"in use: {database.used_bytes(connection) / 2**20:.1f} MiB of {database.shown}")


@app.command("export")
def export(
    to: Annotated[Path, typer.Option(help="file to write: its name ends in .csv or .parquet", show_default=False)],
    what: Annotated[Kind, typer.Option("--show", help="what to write")] = "flows",
    since: Annotated[str | None, _text("seen at or after: 2025-06-01T08:00:00Z, seconds, or 15m, 2h, 7d ago")] = None,
    until: Annotated[str | None, _text("seen before: in the same forms")] = None,
    host: Annotated[str | None, _text("of this address or network: 10.0.0.0/8")] = None,
    port: Annotated[int | None, _text("flows with this port of the responder")] = None,
    label: Annotated[str | None, _text("with this label; unknown for unknown ones")] = None,
    nearest: Annotated[str | None, _text("whose nearest label this is")] = None,
    unknown: Annotated[bool | None, typer.Option("--unknown/--known", help="unknown ones alone, or others")] = None,
    min_confidence: Annotated[float | None, _text("with at least this confidence")] = None,
    max_confidence: Annotated[float | None, _text("with at most this confidence")] = None,
    model: Annotated[str | None, _text("by this model")] = None,
    sensor: Annotated[str | None, _text("flows of this sensor")] = None,
    source: Annotated[str | None, _text("of this bus or capture")] = None,
    unexpected_port: Annotated[
        bool | None, typer.Option("--unexpected-port/--expected-port", help="flows on a port that says something else")
    ] = None,
    suspicious: Annotated[bool | None, typer.Option("--suspicious/--not-suspicious", help="traces that are")] = None,
    subject: Annotated[str | None, _text("traces of this subject")] = None,
    severity: Annotated[Severity | None, _text("alerts of this severity, or a higher one")] = None,
    rule: Annotated[str | None, _text("alerts of this rule")] = None,
    final: Annotated[bool | None, typer.Option("--final/--early", help="final verdicts alone, or early ones")] = None,
    content: Annotated[
        bool, typer.Option("--content", help="with the first content bytes of flows, where the history keeps them")
    ] = False,
    place: Place = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Write verdicts or alerts to a file, oldest first, while the service may go on writing."""
    given = {name: value for name, value in locals().items() if name in _ASKED and value is not None}
    with opened(place, data_dir, config) as database:
        check_format(to)
        wanted = _filter(what, given)
        if what == "alerts" and not database.has(alerts):
            raise HistoryError(f"{database.shown} is of an earlier version, and has no alerts")
        whole = to.with_name(f".{to.name}.{os.getpid()}{to.suffix}")
        try:
            written = write(whole, what, rows(database, wanted), content=content)
            whole.replace(to)
        finally:
            whole.unlink(missing_ok=True)
    say(f"{to}: {written} {what}")


_ASKED = {
    "since", "until", "host", "port", "label", "nearest", "unknown", "min_confidence", "max_confidence", "model",
    "sensor", "source", "unexpected_port", "suspicious", "subject", "severity", "rule",
    "final",
}  # fmt: skip


_FILTERS: dict[Kind, type[Filter]] = {"flows": FlowFilter, "traces": TraceFilter, "alerts": AlertFilter}


def _filter(what: Kind, given: dict[str, Any]) -> Filter:
    """The filter that options ask for.

    Raises:
        FilterError: one cannot be understood, or is not for records of this kind.
    """
    for name in ("since", "until"):
        if name in given:
            given[f"{name}_us"] = time_us(given.pop(name))
    if "host" in given:
        key_range(given["host"])
    kind = _FILTERS[what]
    if other := set(given) - set(kind.__struct_fields__):
        raise FilterError(f"--{min(other).replace('_', '-')} is not for {what}")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise FilterError(str(error)) from None


@contextmanager
def opened(place: str | None, data_dir: Path | None, config: str | None) -> Iterator[Database]:
    """A history that is there; what is wrong is said, and ends the command."""
    try:
        given = configuration(config, {"history": place, "data_dir": data_dir})
        place = given.value("history")
        hide_passwords([place])
        if place == "none":
            raise HistoryError("--history none keeps nothing: name a history")
        database = Database(place, given.value("data_dir"))
        try:
            database.open(create=False)
            yield database
        finally:
            database.close()
    except (ConfigurationError, ExportError, FilterError, HistoryError) as error:
        say(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except SlowQueryError as error:
        say(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    except DBAPIError as error:
        say(f"{database.shown} cannot be read: {str(error.orig).strip().splitlines()[0]}")
        raise typer.Exit(EXIT_FAILED) from None


def _shown(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(" ", "seconds")
