"""The options of `evaluate`, in the two panels of its help: each is of one way to evaluate, and says nothing with the
other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tapline.training.commands import options
from tapline.training.loop.config import TrainingError

OF_RUN, OF_CHECKPOINT = "Of a run", "Of a checkpoint on captures"


def _of_run(option: str, text: str, **more: Any) -> Any:
    return typer.Option(option, help=text, rich_help_panel=OF_RUN, **more)


def _of_checkpoint(option: str, text: str, **more: Any) -> Any:
    return typer.Option(option, help=text, rich_help_panel=OF_CHECKPOINT, **more)


Run = Annotated[Path | None, _of_run("--run", "Directory written by `finetune`.")]
Features = Annotated[list[Path] | None, _of_run("--features", "Directory written by `extract`; as the run had them.")]
Encoders = Annotated[list[Path] | None, _of_run("--encoders", "Directory written by `pretrain`; as of the run.")]
Split = Annotated[Path | None, _of_run("--split", "File written by `split`.")]
Folds = Annotated[int, _of_run("--folds", "Folds of captures.", min=2)]
By = Annotated[
    Literal["capture", "corpus"],
    _of_run("--by", "What a fold leaves out of training: some captures, or a whole corpus."),
]
Seed = Annotated[int, _of_run("--seed", "Seed of everything random.", min=0)]
Tuned = Annotated[list[int] | None, _of_run("--tuned", "Fold that served to choose settings.")]
Int8 = Annotated[bool, _of_run("--int8", "Measure the int8 model of each fold beside it.")]
ZeekLogs = Annotated[
    list[Path] | None,
    _of_run("--zeek-logs", "Zeek's logs, a folder for each capture: its `service` is measured beside."),
]
Processes = Annotated[int, _of_run("--processes", "Folds that are measured at a time.", min=1)]

CheckpointPlace = Annotated[
    str,
    _of_checkpoint("--checkpoint", "Directory of a checkpoint of flows or traces, or the name of one that ships."),
]
Captures = Annotated[
    list[Path] | None, _of_checkpoint("--captures", "Capture, logs, or a folder of them; several times.")
]
Labels = Annotated[
    Path | None,
    _of_checkpoint(
        "--labels", "CSV table of labels: by uid, community_id, endpoints with time or capture, capture, or host."
    ),
]
Column = Annotated[str, _of_checkpoint("--column", "Column of the table with the label.")]
Confidence = Annotated[
    list[str] | None,
    _of_checkpoint("--confidence", "Use only rows whose column `confidence` begins so; several times."),
]
LabelFromFolder = Annotated[
    bool, _of_checkpoint("--label-from-folder", "The first folder below the one given is the label.")
]
Map = Annotated[
    list[str] | None,
    _of_checkpoint(
        "--map",
        "NAME=LABEL: what tables call a label of the checkpoint; or a CSV with label,becomes; several times.",
    ),
]
Predictions = Annotated[
    list[str] | None,
    _of_checkpoint(
        "--predictions", "CSV of what another tool says of the same flows, FILE or FILE=NAME; several times."
    ),
]
Tolerance = Annotated[
    float, _of_checkpoint("--tolerance", "Seconds that a row's time and a flow's start may differ by.", min=0)
]
TimeShift = Annotated[float, _of_checkpoint("--time-shift", "Seconds added to the times of the table of labels.")]
Ports = Annotated[Literal["on", "off"], _of_checkpoint("--ports", "Whether verdicts read ports.")]
Threads = Annotated[int, _of_checkpoint("--threads", "CPU threads, 0: one per core.", min=0)]
Out = Annotated[Path | None, _of_checkpoint("--out", "Directory to write.", file_okay=False)]


def check_way(context: typer.Context, run: Path | None, checkpoint: str) -> None:
    """Refuse options of the way that was not chosen, both ways at once, and neither.

    Raises:
        TrainingError: it is one of these.
    """
    if (run is None) == (not checkpoint):
        raise TrainingError(
            "what is to be evaluated? Give --run, a directory written by `finetune`, with --features; or --checkpoint "
            "with --captures, --labels and --out" + (", not both" if run else "")
        )
    other, way = (OF_RUN, "--checkpoint") if run is None else (OF_CHECKPOINT, "--run")
    for parameter in context.command.params:
        is_other = getattr(parameter, "rich_help_panel", None) == other
        if is_other and parameter.name is not None and options.is_given(context, parameter.name):
            raise TrainingError(f"{parameter.opts[0]} says nothing with {way}: leave it out")


def needed(value: options.Given | None, option: str) -> options.Given:
    """The value of an option that this way cannot do without.

    Raises:
        TrainingError: it was not given.
    """
    if value is None:
        raise TrainingError(f"{option} is needed: see --help")
    return value
