"""The command line `tapline`: parses options and hands over; the work is in the modules it calls."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import msgspec
import typer

from tapline.installation import version
from tapline.models.checkpoint import CheckpointError
from tapline.models.flow import Flow, HeadsKind
from tapline.service.command.alerts_command import app as alerts_app
from tapline.service.command.backup_command import backup, restore
from tapline.service.command.bulk_command import bulk
from tapline.service.command.chosen_classifier import Captures, Reader, Traces, chosen_run
from tapline.service.command.classify import classify_inputs
from tapline.service.command.config_command import app as config_app
from tapline.service.command.config_command import check_config
from tapline.service.command.console import make_console, make_streams_safe, say
from tapline.service.command.doctor_command import doctor
from tapline.service.command.flow_rows import SORT_HELP
from tapline.service.command.health_command import HealthError
from tapline.service.command.health_command import health as ask_health
from tapline.service.command.history_command import app as history_app
from tapline.service.command.keys_command import app as keys_app
from tapline.service.command.models_command import app as models_app
from tapline.service.command.output import Format, Writers, report_writer, writer
from tapline.service.command.serve_command import serve
from tapline.service.command.settings_options import Config, configuration
from tapline.service.command.watch import watch
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.engines.engine import EngineError, EngineName
from tapline.service.engines.thread import hanging_engine
from tapline.service.inference.trace_loading import NO_TRACES
from tapline.service.process.log_lines import configure_logs
from tapline.service.process.process_title import hide_passwords
from tapline.service.python.arguments import MAX_PROCESSES
from tapline.service.python.input_run import account
from tapline.service.results.anonymise import AnonymiseKeyError, Anonymiser, read_key
from tapline.service.results.records import (
    InputSummary,
    feature_lines,
    input_problem,
    left_out_text,
    nothing_understood,
)
from tapline.service.results.selection import Sort
from tapline.service.results.sharing import SharedWriter, Sharing
from tapline.service.results.where import SYNTAX, Where, WhereError, WhereWriter
from tapline.service.results.writers import Show, Writer
from tapline.service.settings import Cascade, Ports
from tapline.service.sources.bus.transport import TransportError
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import FlowInput, inputs_of, open_input
from tapline.service.sources.zeek_process import ZeekError
from tapline.service.traces.window_state import StateError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Deep models on live network traffic.",
)

EXIT_FAILED = 1
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
NOT_OF_WATCH: dict[str, Any] = {"history": "none", "state_dir": None, "output": [], "host": "127.0.0.1"}
"""What a configuration says to a service, and not to who looks beside it: what both would write, where one listens."""

PORTS_HELP = "off: verdicts on flows do not read ports, where the model would"
CASCADE_HELP = "off: the whole network answers every flow, also those that the model's student is sure of"
Output = Annotated[Path | None, typer.Option("--output", "-o", help="write to this file instead of standard output")]


def main() -> None:
    """Run the command line; a closed pipe ends it quietly, a full disk with a sentence."""
    make_streams_safe()
    configure_logs()
    try:
        app()
    except BrokenPipeError:
        _forget_output()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        _forget_output()
        say(f"cannot write the result: {error.strerror}")
        sys.exit(EXIT_FAILED)
    except SystemExit as end:
        if hanging_engine():  # nothing waits for it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else EXIT_FAILED)
        raise


def _forget_output() -> None:
    """Keep Python from flushing what cannot be written when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tapline {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options that come before any command."""


@app.command()
def classify(
    captures: Captures,
    format_: Annotated[Format, typer.Option("--format", "-f", help="how to write the result")] = "table",
    output: Output = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="checkpoint directory [default: the flow-protocols that ships]")
    ] = None,
    min_packets: Annotated[
        int | None, typer.Option(min=1, help="least payload packets of a flow [default: the checkpoint's]")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="add the network's logits to each verdict (JSON and NDJSON)")
    ] = False,
    ports: Annotated[Ports, typer.Option(help=PORTS_HELP)] = "on",
    cascade: Annotated[Cascade, typer.Option(help=CASCADE_HELP)] = "on",
    traces: Traces = None,
    show: Annotated[Show, typer.Option(help="what to write; a CSV of all is one of flows")] = "all",
    limit: Annotated[
        int,
        typer.Option(
            min=0,
            help="rows of a table, those that come first by --sort; 0 for all; captures are read whole all the same",
        ),
    ] = 50,
    sort: Annotated[Sort, typer.Option(help=SORT_HELP)] = "time",
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITIONS", help=f"write only flows and traces that meet {SYNTAX}; repeatable"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="write a page to give away as well: all of it in one file")
    ] = None,
    no_content: NoContent = False,
    anonymise: Anonymise = False,
    anonymise_key: AnonymiseKey = None,
    reader: Reader = "auto",
    engine: Annotated[
        EngineName, typer.Option(help="onnx (CPU, or GPU with the extra `gpu`) or torch (extra `torch`)")
    ] = "onnx",
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_PROCESSES,
            metavar="N",
            help="processes that compute: of several captures each in one, of one capture the flows; with its share of "
            "the cores each",
        ),
    ] = 1,
) -> None:
    """Say what each flow and each trace of a capture is."""
    errors = make_console(stderr=True)
    if report is not None and output is not None and report.resolve() == output.resolve():
        _fail(f"{report}: both --report and --output: give two files", EXIT_USAGE)
    sharing = _sharing(no_content, anonymise, anonymise_key)
    try:
        captures, wanted = list(inputs_of(captures)), Where(where or [])
    except (CaptureError, WhereError) as error:
        _fail(str(error), EXIT_USAGE)
    classifier, workers = chosen_run(
        checkpoint, [NO_TRACES] if show == "flows" else traces or [], engine, errors, processes=processes,
        min_packets=min_packets, with_scores=scores, ports=ports == "on", cascade=cascade == "on",
    )  # fmt: skip
    if show == "traces" and not classifier.trace_engines:
        _fail("no trace model, so there are no traces to show: give --traces NAME or --traces DIR", EXIT_USAGE)
    with _opened(output, captures, as_utf8=format_ != "table") as file, contextlib.ExitStack() as stack:
        target: Writer = writer(format_, file, limit, show, sort)
        if report is not None:
            target = Writers([target, report_writer(stack.enter_context(_opened(report, captures)))])
        target = chosen = WhereWriter(SharedWriter(target, sharing), wanted)
        try:
            summary = classify_inputs(captures, reader, classifier, target, errors, workers)
        except EngineError as error:
            _fail(str(error), EXIT_FAILED)
    if wanted:
        errors.print(chosen.account, style="dim")
    if format_ in ("csv", "ndjson"):
        for text in filter(None, map(left_out_text, summary.inputs)):
            errors.print(text, style="dim", soft_wrap=True)
    failed = summary.failed + sum(entry.failed + entry.unread for entry in summary.traces)
    incomplete = any(entry.error or entry.warning for entry in summary.inputs)
    if failed or incomplete or nothing_understood(summary.inputs):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def features(
    captures: Captures,
    output: Output = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="add MM4flow's tokens")] = False,
    heads: Annotated[
        HeadsKind, typer.Option(help="packet heads: headers alone, headers and payload, or none")
    ] = "header",
    everything: Annotated[bool, typer.Option("--all", help="flows without payload, too")] = False,
    no_content: NoContent = False,
    anonymise: Anonymise = False,
    anonymise_key: AnonymiseKey = None,
    reader: Reader = "auto",
) -> None:
    """Write the features of each flow, one JSON line per flow, as the API takes them back."""
    sharing = _sharing(no_content, anonymise, anonymise_key)
    try:
        captures = list(inputs_of(captures))
    except CaptureError as error:
        _fail(str(error), EXIT_USAGE)
    entries = [InputSummary(name) for name in captures]
    with _opened(output, captures, as_utf8=True) as file:
        for entry in entries:
            try:
                source = open_input(entry.name, reader, ReadOptions(heads=heads))
                for line in feature_lines(map(sharing.flow, _counted(source, entry, everything)), tokens=tokens):
                    file.write(msgspec.json.encode(line).decode() + "\n")
                account(entry, source)
            except CaptureError as error:
                entry.error = str(error)
            for text in filter(None, (input_problem(entry), left_out_text(entry))):
                say(text)
    if any(entry.error or entry.warning for entry in entries) or nothing_understood(entries):
        raise typer.Exit(EXIT_FAILED)


def _counted(source: FlowInput, entry: InputSummary, everything: bool) -> Iterator[Flow]:
    """The flows of a source, those without payload only on request; `entry` counts all."""
    for flow in source:
        entry.flows += 1
        if everything or flow.payload_lengths:
            yield flow


app.command("bulk")(bulk)
app.command("serve")(serve)
app.command("check-config")(check_config)
app.command("doctor")(doctor)
app.add_typer(config_app, name="config")
app.add_typer(models_app, name="models")
app.add_typer(history_app, name="history")
app.add_typer(alerts_app, name="alerts")
app.add_typer(keys_app, name="keys")
app.command("backup")(backup)
app.command("restore")(restore)


@app.command("health")
def health_command(
    pid: Annotated[
        int | None, typer.Option(min=1, help="the service that is this process, wherever its own flags let it listen")
    ] = None,
    config: Config = None,
) -> None:
    """Say whether the service of this environment answers: status 0 if it does, 1 if not."""
    try:
        typer.echo(f"{ask_health(pid, config)} answers")
    except ConfigurationError as error:
        for problem in error.problems:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None
    except HealthError as error:
        _fail(str(error), EXIT_FAILED)


@app.command("watch")
def watch_command(
    interface: Annotated[
        list[str] | None,
        typer.Option(help="start Zeek on this interface, or eth0=NAME to name the sensor; repeatable"),
    ] = None,
    zeek: Annotated[
        list[str] | None, typer.Option(help="attach to a running sensor: ws://host:port; repeatable")
    ] = None,
    replay: Annotated[Path | None, typer.Option(help="play a capture instead, without Zeek")] = None,
    speed: Annotated[float, typer.Option(min=0, help="speed of the replay, 0 as fast as it goes")] = 1.0,
    config: Config = None,
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint directory [default: the one that ships]")] = None,
    traces: Traces = None,
    ports: Annotated[Ports | None, typer.Option(help=f"{PORTS_HELP} [default: on]")] = None,
    cascade: Annotated[Cascade | None, typer.Option(help=f"{CASCADE_HELP} [default: on]")] = None,
    zeek_dir: Annotated[
        Path | None,
        typer.Option(
            help="where Zeek on the interface keeps its logs, each run in a directory of its own "
            "[default: zeek/ of the data directory]"
        ),
    ] = None,
    zeek_script: Annotated[
        list[str] | None, typer.Option(help="script that Zeek on the interface loads, too; repeatable")
    ] = None,
    zeek_option: Annotated[
        list[str] | None, typer.Option(help="option of Zeek on the interface, Name=value; repeatable")
    ] = None,
    return_verdicts: Annotated[
        bool, typer.Option("--return-verdicts", help="send verdicts back to Zeek's logs and notices, as `serve` does")
    ] = False,
) -> None:
    """Show verdicts on live traffic, until Ctrl-C."""
    if not (interface or zeek or replay):
        _fail("nothing to watch: give --interface IF, --zeek ws://host:port or --replay CAPTURE", EXIT_USAGE)
    if replay and (interface or zeek):
        _fail("a replay beside live traffic: give --replay, or --zeek and --interface", EXIT_USAGE)
    try:
        chosen = {
            "checkpoint": checkpoint, "traces": traces, "ports": ports, "cascade": cascade,
            "zeek_dir": zeek_dir,
            "zeek_script": zeek_script, "zeek_option": zeek_option,
        }  # fmt: skip
        alone = {"zeek": zeek or [], "interface": interface or [], "replay": replay, "speed": speed, **NOT_OF_WATCH}
        settings = configuration(config, chosen, alone).settings()
        hide_passwords(settings.zeek)
        if not return_verdicts:
            settings = settings.model_copy(update={"spool_verdicts": 0})
        raise typer.Exit(watch(settings))
    except ConfigurationError as error:
        _fail("; ".join(error.problems), EXIT_USAGE)
    except (CheckpointError, EngineError, StateError, TransportError) as error:
        _fail(str(error), EXIT_USAGE)
    except (ZeekError, CaptureError) as error:
        _fail(str(error), EXIT_FAILED)


@contextlib.contextmanager
def _opened(output: Path | None, inputs: list[str], *, as_utf8: bool = False) -> Iterator[TextIO]:
    """Standard output, or a file that takes its name only when it is whole; an input is never written over.

    Files are in UTF-8; `as_utf8` has standard output so, whatever the terminal speaks, as programs expect it.
    """
    if output is None:
        if as_utf8 and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="strict")
        yield sys.stdout
        return
    if any(Path(name).exists() and output.exists() and output.samefile(name) for name in inputs):
        _fail(f"{output}: is an input, too: write the result elsewhere", EXIT_USAGE)
    whole = not output.exists() or output.is_file()  # a device or a pipe is written as it is
    target = output.with_name(f".{output.name}.{os.getpid()}") if whole else output
    try:
        file = target.open("w", encoding="utf-8", newline="")
    except OSError as error:
        _fail(f"{output}: cannot write it: {error.strerror}", EXIT_USAGE)
    try:
        with file:
            yield file
        if whole:
            target.replace(output)
    finally:
        if whole:
            target.unlink(missing_ok=True)


def _sharing(no_content: bool, anonymise: bool, key: Path | None) -> Sharing:
    """What is given away of records by the options of a command; with a key that cannot be read it ends."""
    if key is not None and not anonymise:
        _fail("--anonymise-key without --anonymise: give both", EXIT_USAGE)
    try:
        anonymiser = Anonymiser(read_key(key) if key is not None else None) if anonymise else None
    except AnonymiseKeyError as error:
        _fail(str(error), EXIT_USAGE)
    return Sharing(content=not no_content, anonymiser=anonymiser)


def _fail(message: str, status: int) -> NoReturn:
    say(message)
    raise typer.Exit(status)
