"""What several commands share: options with the published letters, progress, and how a plan and an end are said."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tapline.models.checkpoint import Checkpoint, TracegramCheckpoint
from tapline.models.checkpoint_writing import refuse_other_files
from tapline.models.flow import MAX_CONTENT_BYTES, MAX_PAYLOAD_LENGTHS
from tapline.models.trace import SubjectKind, TraceSettings
from tapline.training.flows.flow_record import Run
from tapline.training.loop.plan import Plan, joined
from tapline.training.loop.processes import is_first
from tapline.training.loop.trainer import Report, StepReport
from tapline.training.traces.trace_record import TraceRun

_Run = TypeVar("_Run", bound=Run | TraceRun)
_Checkpoint = TypeVar("_Checkpoint", Checkpoint, TracegramCheckpoint)

MIN_CAPTURES = 3
console = Console(stderr=True)

Features = Annotated[list[Path], typer.Option("--features", help="Directory written by `extract`; several times.")]
Out = Annotated[Path, typer.Option("--out", file_okay=False, help="Directory to write.")]
Width = Annotated[int, typer.Option("-d", min=1, help="Width of the network.")]
Heads = Annotated[int, typer.Option("-nh", min=1, help="Attention heads.")]
Layers = Annotated[int, typer.Option("-l", min=1, help="Layers of each encoder.")]
FeedForward = Annotated[int, typer.Option("-f", min=1, help="Width of the feed-forward blocks.")]
BatchFlows = Annotated[int, typer.Option("-b", min=1, help="Flows in a batch, all processes together.")]
Epochs = Annotated[int, typer.Option("-ep", min=1, help="Epochs.")]
Evaluations = Annotated[int, typer.Option("-ev", min=1, help="Evaluations in an epoch, on what is held out.")]
Saves = Annotated[int, typer.Option("-sv", min=1, help="Times in an epoch that the state is saved.")]
Rate = Annotated[float, typer.Option("-lr", min=1e-9, max=1, help="Highest learning rate.")]
Draws = Annotated[int, typer.Option("--draws", min=1, help="Flows drawn in an epoch.")]
Clip = Annotated[float, typer.Option("--clip", min=1e-6, help="Longest gradient; longer ones are scaled down to it.")]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Parts that a batch is computed in.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto: a GPU where there is one.")]
Packets = Annotated[
    int,
    typer.Option("--packets", min=1, max=MAX_PAYLOAD_LENGTHS, help="Payload lengths that the model reads of a flow."),
]
ContentBytes = Annotated[
    int,
    typer.Option("--content-bytes", min=0, max=MAX_CONTENT_BYTES, help="Content bytes that the model reads each way."),
]
Encoders = Annotated[
    list[Path] | None,
    typer.Option("--encoders", help="Directory written by `pretrain`; one for each encoder, or both."),
]
MinCaptures = Annotated[int, typer.Option("--min-captures", min=1, help="Learn the labels that so many captures hold.")]
MinFlows = Annotated[int, typer.Option("--min-flows", min=1, help="Of these the ones of so many flows.")]
LabelColumn = Annotated[
    str,
    typer.Option("--column", help="Column of the table with the label; by default label, or protocol beside l4."),
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", min=0, help="Seconds that a row's time and a flow's start may differ by.")
]
TimeShift = Annotated[float, typer.Option("--time-shift", help="Seconds added to the times of the table of labels.")]
Split = Annotated[Path | None, typer.Option("--split", help="File written by `split`.")]
RunDirectory = Annotated[Path, typer.Option("--run", help="Directory written by `finetune`.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw an unfinished run in --out away.")]
Name = Annotated[str, typer.Option("--name", help="Name of the checkpoint.")]
Version = Annotated[str, typer.Option("--version", help="Version of the checkpoint.")]
Notes = Annotated[Path | None, typer.Option("--notes", help="Markdown put into the card.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read and check the input, say what would be done, and write nothing.")
]
Processes = Annotated[int, typer.Option("--processes", min=1, help="Processes that read.")]


Given = TypeVar("Given")


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether the user gave an option, by the name of its parameter."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def default_processes() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def trace_settings(subject: SubjectKind, window_seconds: float) -> TraceSettings:
    """What a trace is, as a checkpoint may carry it.

    Raises:
        typer.BadParameter: no window can be that long or that short.
    """
    try:
        return msgspec.convert({"subject": subject, "window_seconds": window_seconds}, TraceSettings)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error)) from None


def say_plan(plan: Plan) -> None:
    """What `--dry-run` says, on standard output."""
    if is_first():
        for line in plan.lines():
            typer.echo(line)


def say(line: str) -> None:
    """A line for the person at the terminal, on standard error."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_or_say(
    directory: Path,
    dry_run: bool,
    write: Callable[[Path], _Checkpoint],
    figures: Callable[[_Checkpoint], list[str]] = lambda _: [],
) -> None:
    """Let `write` write a checkpoint into a directory, and say so, with its `figures` in words; in a dry run it is made
    whole in a temporary one, and told."""
    checkpoint = _tried(directory, write) if dry_run else write(directory)
    for line in figures(checkpoint):
        typer.echo(line)
    if not dry_run:
        typer.echo(f"{directory}: {len(checkpoint.labels)} labels")


def _tried(directory: Path, write: Callable[[Path], _Checkpoint]) -> _Checkpoint:
    refuse_other_files(directory)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write(Path(folder) / directory.name)
        sizes = [path.stat().st_size for path in (Path(folder) / directory.name).iterdir()]
    facts = [
        f"{checkpoint.kind} checkpoint {checkpoint.name} {checkpoint.version}",
        f"{len(checkpoint.labels)} labels",
        f"{len(sizes)} files",
        f"{sum(sizes) / 1e6:.1f} MB",
    ]
    notes = [f"the checkpoint in {directory} is replaced"] if directory.exists() else []
    say_plan(Plan("write", facts, [directory], notes))
    return checkpoint


def read_notes(notes: Path | None) -> str:
    """What a person wrote for the card, "" for nothing."""
    return notes.read_text(encoding="utf-8") if notes else ""


def announce(plan: Plan) -> None:
    """What is about to be done."""
    if is_first():
        for line in (", ".join(plan.facts), *(f"note: {note}" for note in plan.notes)):
            say(line)


def train(
    command: str,
    out: Path,
    run: Callable[[Report], _Run | Plan],
    learned: Callable[[_Run], list[str | None]],
    notes: Callable[[_Run], list[str]] = lambda _: [],
) -> None:
    """Let `run` train beside a progress bar, and say what was `learned`, from how many flows, how long it took and
    where it lies; or what would be done."""
    with step_progress(command) as after_step:
        done: _Run | Plan = run(after_step)
    if isinstance(done, Plan):
        say_plan(done)
    elif is_first():
        facts = joined([*learned(done), f"{done.flows} flows in {done.seconds:.0f} s: {out}"])
        for line in (*(f"note: {note}" for note in notes(done)), ", ".join(facts)):
            say(line)


def progress_bar(*extra: str) -> Progress:
    """A progress bar on standard error, silent where that is no terminal; `extra` are fields it shows."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn(f"{{task.fields[{name}]}}") for name in extra]
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console,
        disable=not (console.file.isatty() and is_first()),  # FORCE_COLOR, as in notebooks, makes `is_terminal` true
    )  # fmt: skip


@contextmanager
def step_progress(description: str) -> Iterator[Callable[[StepReport], None]]:
    """A progress bar over the steps of a run: loss, throughput, time left."""
    with progress_bar("loss", "rate") as progress:
        task = progress.add_task(description, total=None, loss="", rate="")

        def after_step(done: StepReport) -> None:
            progress.update(
                task,
                completed=done.step,
                total=done.steps,
                loss=f"loss {done.loss:.3f}",
                rate=f"{done.flows_per_second:,.0f} flows/s, {done.tokens_per_second:,.0f} tokens/s",
            )

        yield after_step
