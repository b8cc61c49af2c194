"""The command search: options and output; what it does is in `training.searching`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tapline.training.commands import options
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.processes import world_size
from tapline.training.searching.search_space import read_space
from tapline.training.searching.search_study import SearchJob, TrialResult, plan_search, search

MOST_TOLD = 5
"""Trials that are told at the end, the best first."""


def register(app: typer.Typer) -> None:
    """Add the command to `tapline-train`."""
    app.command("search", rich_help_panel="Models of flows")(search_command)


def search_command(
    features: options.Features,
    split: Annotated[
        Path, typer.Option("--split", help="File written by `split`; trials see training and validation.")
    ],
    out: options.Out,
    space: Annotated[
        Path | None,
        typer.Option("--space", help="TOML with what is searched and what is fixed; by default sizes and rate."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials in all, those of earlier calls too.")] = 20,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Seconds after which it stops, to be taken up later.")
    ] = None,
    encoders: options.Encoders = None,
    min_captures: options.MinCaptures = options.MIN_CAPTURES,
    min_flows: options.MinFlows = 1,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
) -> None:
    """Search settings of finetune by trials, judged on validation; the part for the test is never read.

    Every trial is an ordinary run below --out. Interrupted, however: repeat the command.
    """
    if world_size() > 1:
        raise TrainingError("search runs in one process: start it without `torchrun`")
    base = msgspec.structs.replace(TrainingConfig(), seed=seed, threads=threads, device=device)
    job = SearchJob(
        features, split, out, read_space(space), base, trials, timeout, encoders or (), min_captures, min_flows
    )
    if dry_run:
        options.say_plan(plan_search(job))
        return
    with options.step_progress("search") as after_step:
        found = search(job, lambda result: options.say(_line(result)), after_step)
    _say_best(job, found)


def _line(result: TrialResult) -> str:
    settings = ", ".join(f"{name} {value:.4g}" for name, value in result.settings.items())
    value = f"macro-F1 {result.macro_f1:.3f}" if result.macro_f1 is not None else f"failed: {result.fault}"
    return f"{result.run}: {value}; {settings}"


def _say_best(job: SearchJob, found: Sequence[TrialResult]) -> None:
    for result in found[:MOST_TOLD]:
        typer.echo(_line(result))
    left = job.trials - len(found)
    if left > 0:
        typer.echo(f"{left} of {job.trials} trials are left: repeat the command to go on")
    if not found or found[0].macro_f1 is None:
        typer.echo("no trial was finished" if not found else "every trial failed: look at the space")
        return
    data = " ".join(f"--features {shlex.quote(str(path))}" for path in job.features)
    data += "".join(f" --encoders {shlex.quote(str(path))}" for path in job.encoders)
    data += f" --split {shlex.quote(str(job.split))}"
    best = shlex.quote(str(job.directory / found[0].run))
    more = "".join(
        f" {option} {value}"
        for option, value, usual in (
            ("--min-captures", job.min_captures, options.MIN_CAPTURES), ("--min-flows", job.min_flows, 1),
            ("--seed", job.base.seed, 0),
        )
        if value != usual
    )  # fmt: skip
    typer.echo(f"the best, by {job.split.name}'s part for validation: {found[0].run}. Measure it on the test, once:")
    typer.echo(f"  tapline-train evaluate {data} --run {best}")
    typer.echo("Train so again, or on other data:")
    typer.echo(f"  tapline-train finetune {data} --out RUN {job.space.options(found[0].settings)}{more}")
