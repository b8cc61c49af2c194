"""The command `tapline bulk`: options, what a person sees of a run, and its end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import uuid
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tapline.installation import install_command
from tapline.models.checkpoint import read_any_manifest
from tapline.service.command.bulk_progress import BulkProgress
from tapline.service.command.chosen_classifier import Engine, FlowModel, Reader, ReadPorts, Traces, chosen_classifier
from tapline.service.command.console import make_console
from tapline.service.command.streams import fail, say
from tapline.service.engines.engine import EngineName
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT
from tapline.service.inference.repository import newest_version, shipped_checkpoint
from tapline.service.inference.trace_loading import trace_directories
from tapline.service.process.signals import stop_signals
from tapline.service.sources.capture import CaptureError

if TYPE_CHECKING:
    from tapline.service.bulk.bulk_records import BulkCapture, CaptureAccount
    from tapline.service.bulk.bulk_worker import WorkerOptions

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_NEEDED = ("ray", "fsspec", "pyarrow")

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="captures: files, directories, patterns, or URLs of a filesystem that fsspec knows, as s3://bucket/day/",
        show_default=False,
    ),
]
Out = Annotated[
    str, typer.Option(metavar="DIR|URL", help="where Parquet of flows and traces goes; run again, it does what is left")
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=100_000, help="captures at a time [default: as many as there are CPUs]")
]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="of the engines of each worker")]
RayAddress = Annotated[
    str | None, typer.Option(metavar="HOST:PORT|auto", help="a Ray cluster [default: one on this machine, for this]")
]


def bulk(
    sources: Sources,
    out: Out,
    workers: Workers = None,
    threads: Threads = 1,
    ray_address: RayAddress = None,
    checkpoint: FlowModel = None,
    traces: Traces = None,
    ports: ReadPorts = "on",
    reader: Reader = "auto",
    engine: Engine = "onnx",
) -> None:
    """Classify an archive of captures into Parquet, on this machine's cores or a Ray cluster."""
    if any(_is_missing(name) for name in _NEEDED):
        fail(f"bulk runs need Ray, of the extra `bulk`: {install_command('bulk')}", EXIT_USAGE)
    from tapline.service.bulk.bulk_records import BulkError, left, made_with
    from tapline.service.bulk.bulk_sources import find_captures
    from tapline.service.bulk.bulk_store import BulkStore
    from tapline.service.bulk.bulk_worker import WorkerOptions

    console = make_console(stderr=True)
    try:
        captures, store = find_captures(sources), BulkStore(out)
        flow_model, trace_models = _models(checkpoint, traces or [], engine, console)
        options = WorkerOptions(
            run=uuid.uuid4().hex,
            out=store.out,
            made=made_with(flow_model, trace_models, ports=ports == "on", reader=reader),
            checkpoint=flow_model,
            traces=trace_models,
            engine=engine,
            threads=threads,
        )
        store.begin(options.made)
        accounts = store.accounts()
    except (BulkError, CaptureError) as error:
        fail(str(error), EXIT_USAGE)
    progress = BulkProgress(console, captures, left(captures, accounts))
    status = _run(progress, accounts, _computed(progress.rest, options, workers, ray_address))
    try:
        store.finish(accounts.values())
    except BulkError as error:
        fail(str(error), EXIT_FAILED)
    asked = [accounts[capture.key] for capture in captures if capture.key in accounts]
    say(f"{progress.total_text(asked)}, in {store.out}")
    raise typer.Exit(status or (0 if all(account.is_whole for account in asked) else EXIT_FAILED))


def _run(
    progress: BulkProgress, accounts: dict[str, CaptureAccount], computed: Generator[CaptureAccount, None, None]
) -> int:
    """Add what is computed to the accounts; the status with which it ended."""
    from tapline.service.bulk.bulk_records import BulkError

    try:
        with progress, contextlib.closing(computed) as found:
            for account in found:
                accounts[account.key] = account
                progress.add(account)
    except KeyboardInterrupt:
        say("interrupted: run it again to go on")
        return EXIT_INTERRUPTED
    except BulkError as error:
        say(str(error))
        return EXIT_FAILED
    return 0


def _computed(
    captures: Sequence[BulkCapture], options: WorkerOptions, workers: int | None, address: str | None
) -> Generator[CaptureAccount, None, None]:
    """What comes of captures on Ray, which is there while they are computed."""
    if not captures:
        return
    from tapline.service.bulk.bulk_run import run_on_ray
    from tapline.service.bulk.ray_cluster import joined_ray, local_ray, places, ray_nodes

    if address is None:
        workers = min(workers or max(1, len(os.sched_getaffinity(0)) // options.threads), len(captures))
        ray = local_ray(workers * options.threads)
    else:
        ray = joined_ray(address)
    with _one_interrupt(), ray:
        yield from run_on_ray(captures, options, places(ray_nodes(), workers, options.threads))


def _models(
    checkpoint: Path | None, traces: list[str], engine: EngineName, console: Console
) -> tuple[Path, tuple[Path, ...]]:
    """The checkpoints of flows and of traces, once they were loaded here; ends the command where one is none."""
    names = {each.checkpoint.name for each in chosen_classifier(checkpoint, traces, engine, console).trace_engines}
    flow_model = newest_version(checkpoint) if checkpoint else shipped_checkpoint(DEFAULT_CHECKPOINT)
    fitting = [each for each in trace_directories(traces) if read_any_manifest(each).name in names]
    return flow_model.resolve(), tuple(each.resolve() for each in fitting)


@contextlib.contextmanager
def _one_interrupt() -> Iterator[None]:
    """Every signal that asks to stop is a KeyboardInterrupt, once: what is then ended is not interrupted again."""

    def interrupt(number: int, frame: object) -> None:
        for each in asked:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    asked = stop_signals()
    before = {each: signal.signal(each, interrupt) for each in asked}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _is_missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None
