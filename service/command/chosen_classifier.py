"""What classifies in a command, by its options: those of inputs and models that several commands have alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tapline.models.checkpoint import CheckpointError
from tapline.service.command.streams import say
from tapline.service.engines.engine import EngineError, EngineName, Ports
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT, Classifier
from tapline.service.inference.repository import newest_version, shipped_checkpoint
from tapline.service.inference.trace_loading import trace_directories
from tapline.service.process.garbage import spare_what_is_loaded
from tapline.service.python.chosen import chosen_workers, open_classifier
from tapline.service.python.workers import Workers
from tapline.service.sources.inputs import ReaderName

EXIT_USAGE = 2

Captures = Annotated[
    list[str],
    typer.Argument(
        metavar="CAPTURE...",
        help="pcap or pcapng (plain, gzip, zstd), NDJSON of `tapline features`, a directory of captures, or -",
    ),
]
Reader = Annotated[ReaderName, typer.Option(help="auto: the built-in one; zeek: run Zeek on the capture")]
Traces = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|DIR",
        help="trace model that ships by its name, or another by its directory; repeatable; `none` for no traces "
        "[default: all that ship]",
    ),
]
FlowModel = Annotated[Path | None, typer.Option(help="checkpoint directory [default: the flow-protocols that ships]")]
Engine = Annotated[EngineName, typer.Option(help="onnx (CPU, or GPU with the extra `gpu`) or torch (extra `torch`)")]
PORTS_HELP = "off: verdicts on flows do not read ports, where the model would"
CASCADE_HELP = "off: the whole network answers every flow, also those that the model's student is sure of"
ReadPorts = Annotated[Ports, typer.Option(help=PORTS_HELP)]


def chosen_classifier(
    checkpoint: Path | None, traces: list[str], engine: EngineName, errors: Console, **options: Any
) -> Classifier:
    """What classifies, with the trace models that fit; ends the command where a model is none. `options`: of it."""
    return chosen_run(checkpoint, traces, engine, errors, **options)[0]


def chosen_run(
    checkpoint: Path | None,
    traces: list[str],
    engine: EngineName,
    errors: Console,
    *,
    processes: int = 1,
    **options: Any,
) -> tuple[Classifier, Workers | None]:
    """As `chosen_classifier`, and the processes that compute, None for one, which is this one."""
    try:
        directory = newest_version(checkpoint) if checkpoint else shipped_checkpoint(DEFAULT_CHECKPOINT)
        directories = trace_directories(traces)
        classifier = open_classifier(
            directory,
            directories,
            engine,
            required=bool(traces),
            warn=lambda reason: errors.print(reason, style="yellow", markup=False, soft_wrap=True),
            threads=0 if processes == 1 else 1,
            **options,
        )
        spare_what_is_loaded()
        return classifier, chosen_workers(directory, directories, engine, classifier, processes=processes)
    except (CheckpointError, EngineError) as error:
        say(str(error))
        raise typer.Exit(EXIT_USAGE) from None
