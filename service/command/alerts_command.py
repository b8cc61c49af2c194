"""The command `tapline alerts`: checks alert rules, and shows what they would make of captures or the history."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import typer

from tapline.service.alerts.rule_conditions import ready_rules
from tapline.service.alerts.rule_engine import RuleEngine
from tapline.service.alerts.rule_facts import Facts, flow_facts, trace_facts
from tapline.service.alerts.rule_faults import AlertRulesError
from tapline.service.alerts.rule_file import RuleFile, read_rules
from tapline.service.alerts.rule_warnings import Known, rule_warnings
from tapline.service.command.alert_output import AlertLines, AlertTable, AlertWriter
from tapline.service.command.chosen_classifier import Captures, FlowModel, Reader, Traces, chosen_classifier
from tapline.service.command.console import make_console
from tapline.service.command.history_command import DataDir, Place, opened
from tapline.service.command.settings_options import Config
from tapline.service.command.streams import say
from tapline.service.command.terminal import progress
from tapline.service.engines.engine import EngineError
from tapline.service.history.export import records
from tapline.service.history.filters import FlowFilter, TraceFilter, time_us
from tapline.service.history.past import PastFlow, PastTrace
from tapline.service.inference.known_models import names_and_labels
from tapline.service.inference.repository import ZOO, Repository
from tapline.service.python.offline import OfflineRun, Result
from tapline.service.results.records import InputSummary, input_problem
from tapline.service.sources.capture import CaptureError
from tapline.service.sources.inputs import inputs_of

EXIT_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(no_args_is_help=True, help="Check alert rules, and show what they would make of traffic.")

Rules = Annotated[Path, typer.Argument(metavar="RULES", help="file of alert rules (TOML)")]
Format = Annotated[
    Literal["table", "ndjson"], typer.Option("--format", "-f", help="ndjson: one alert a line, as of /v1/alerts")
]
Limit = Annotated[int, typer.Option(min=0, help="alerts of a table, the first in time; 0 for all")]


@app.command("example")
def example() -> None:
    """Print rules to begin with, every one explained."""
    typer.echo(resources.files("tapline.service.alerts").joinpath("starting-rules.toml").read_text("utf-8"), nl=False)


@app.command("check")
def check(
    rules: Rules,
    repository: Annotated[
        Path | None, typer.Option(help="model repository of the service [default: the models that ship]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with status 1 where there are warnings")] = False,
) -> None:
    """Say what is wrong with rules, line by line; and warn of those that can never fire, or always."""
    file = _read(rules)
    warnings = rule_warnings(file, known_models(repository))
    for warning in warnings:
        say(f"{warning.path}:{warning.line}: warning: {warning.text}")
    off = sum(not rule.enabled for rule in file.rules)
    parts = [_counted(len(file.rules), "rule"), *([f"{off} of them switched off"] if off else [])]
    parts += [_counted(len(file.lists), "list")] if file.lists else []
    typer.echo(f"{rules}: {', '.join(parts)}: {_counted(len(warnings), 'warning') if warnings else 'no mistakes'}")
    if warnings and strict:
        raise typer.Exit(EXIT_FAILED)


@app.command("test")
def on_captures(
    rules: Rules,
    captures: Captures,
    format_: Format = "table",
    limit: Limit = 50,
    checkpoint: FlowModel = None,
    traces: Traces = None,
    reader: Reader = "auto",
) -> None:
    """Show which alerts rules would make of captures; time is that of the traffic."""
    file = _read(rules)
    errors = make_console(stderr=True)
    try:
        names = list(inputs_of(captures))
    except CaptureError as error:
        say(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    classifier = chosen_classifier(checkpoint, traces or [], "onnx", errors)

    def ended(entry: InputSummary) -> None:
        if problem := input_problem(entry):
            say(problem)

    run = OfflineRun(names, reader, classifier, shown=lambda name, source: progress(errors, name, source), ended=ended)
    try:
        _apply(file, _capture_facts(run), format_, limit, in_order=False)
    except EngineError as error:
        say(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    if any(entry.error or entry.warning for entry in run.inputs):
        raise typer.Exit(EXIT_FAILED)


@app.command("history")
def history(
    rules: Rules,
    format_: Format = "table",
    limit: Limit = 50,
    since: Annotated[
        str | None, typer.Option(help="seen at or after: 2025-06-01T08:00:00Z, seconds, or 15m, 2h, 7d ago")
    ] = None,
    until: Annotated[str | None, typer.Option(help="seen before: in the same forms")] = None,
    place: Place = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Show which alerts rules would have made of the history; time is when each verdict was kept."""
    file = _read(rules)
    with opened(place, data_dir, config) as database:
        since_us, until_us = (time_us(text) if text is not None else None for text in (since, until))
        flows = records(database, FlowFilter(since_us=since_us, until_us=until_us))
        traces = records(database, TraceFilter(since_us=since_us, until_us=until_us))
        _apply(file, _history_facts(flows, traces), format_, limit, in_order=True)


def _read(path: Path) -> RuleFile:
    """The rules of a file; what is wrong with them is said, and ends the command."""
    try:
        return read_rules(path)
    except AlertRulesError as error:
        for problem in error.lines:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None


def _apply(file: RuleFile, facts: Iterator[Facts], format_: str, limit: int, *, in_order: bool) -> None:
    """Write what rules make of facts; `in_order`: these come in the order of time."""
    ready = [each for each in ready_rules(file) if each.rule.kind != "drift"]
    writer: AlertWriter = (
        AlertTable(sys.stdout, limit, [each.rule for each in ready])
        if format_ == "table"
        else AlertLines(sys.stdout, in_order=in_order)
    )
    engine = RuleEngine(ready, writer.suppressed, _tell_once())
    for each in facts:
        for alert in engine.alerts(each):
            writer.add(alert)
    writer.finish()
    if drift := [rule.name for rule in file.rules if rule.kind == "drift" and rule.enabled]:
        say(f"not asked, for they are about drift: {', '.join(drift)}")


def _tell_once() -> Callable[[str], None]:
    """Tells a user once of each memory of the rules that was too small for the traffic."""
    told: set[str] = set()

    def forgotten(memory: str) -> None:
        if memory not in told:
            told.add(memory)
            say(f"more identifiers than rules remember ({memory}): the oldest were forgotten, so alerts may repeat")

    return forgotten


def _capture_facts(run: OfflineRun) -> Iterator[Facts]:
    for found in run:
        if not isinstance(found, Result):
            yield trace_facts(found, found.end_us)
        elif found.verdict is not None:
            flow = found.flow
            yield flow_facts(found.input, flow, found.verdict, flow.start_us + flow.duration_us)


def _history_facts(flows: Iterator[PastFlow | PastTrace], traces: Iterator[PastFlow | PastTrace]) -> Iterator[Facts]:
    """Those of flows and traces together, in the order in which they were seen."""
    for past in heapq.merge(flows, traces, key=lambda past: past.seen_us):
        if isinstance(past, PastFlow):
            yield flow_facts(past.source, past, past.verdict, past.seen_us)
        else:
            yield trace_facts(past, past.seen_us)


def known_models(repository: Path | None) -> Known:
    """Those of a repository, and those that ship."""
    roots = [ZOO] if repository is None else [repository, ZOO]
    return Known(*names_and_labels(map(Repository, roots), say))


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
