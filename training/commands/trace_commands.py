"""The commands that make trace models: pretrain-packets, tune-flows, train-traces, evaluate-traces, export-traces.
Options and output; what they do is in `training.traces`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import MAX_CONTENT_BYTES, MAX_PAYLOAD_LENGTHS
from tapline.models.packet_tokens import TracegramFeatures
from tapline.models.trace import SubjectKind, TraceSettings
from tapline.models.trace_context import CONTEXTS
from tapline.training.commands import options
from tapline.training.data.labelled_traces import look_alike
from tapline.training.evaluation.evaluation_record import TraceEvaluation
from tapline.training.evaluation.page import REPORTS
from tapline.training.evaluation.suspicion import SUSPICION
from tapline.training.evaluation.trace_evaluation import (
    TraceEvaluationSettings,
    evaluate_suspicion,
    evaluate_traces,
    plan_suspicion,
    plan_trace_evaluation,
)
from tapline.training.evaluation.trace_figures import REFERENCE
from tapline.training.evaluation.variants import VARIANTS
from tapline.training.export.run_export import export_traces_run
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import EVALUATION
from tapline.training.loop.runs import Job
from tapline.training.traces.trace_config import (
    JOINT_LENGTHS,
    Phase,
    TraceTrainingConfig,
    context_config,
    encoder_features,
)
from tapline.training.traces.trace_record import TraceRun, read_trace_run
from tapline.training.traces.trace_runs import joint_of, pretrain_packets_run, train_traces_run, tune_flows_run

DEFAULTS = TraceTrainingConfig()
NETWORK = DEFAULTS.network

Start = Annotated[Path | None, typer.Option("--start", help="Run of the phase before, whose encoder this one takes.")]
DrawsOf = Annotated[int, typer.Option("--draws", min=1, help="Flows, or traces, drawn in an epoch.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=16, max=NETWORK.max_seq_len, help="Tokens read of a flow.")]
Window = Annotated[float, typer.Option("--window-seconds", min=0, help="Length of a trace; 0: all of a capture.")]
Subject = Annotated[SubjectKind, typer.Option("--subject", help="Whose flows make a trace.")]
Lengths = Annotated[
    int,
    typer.Option(
        "--lengths", min=1, max=MAX_PAYLOAD_LENGTHS, help="Payload lengths that an MM4flow encoder reads of a flow."
    ),
]
JointContent = Annotated[
    int,
    typer.Option(
        "--content-bytes",
        min=0,
        max=MAX_CONTENT_BYTES,
        help="Content bytes each way that it reads, own addresses masked; 0: headers only.",
    ),
]
Fields = Annotated[
    Literal["all", "behaviour"],
    typer.Option(
        "--context",
        help="What is read of flows: everything, or nothing of what tells a host's system (TTL, windows, options).",
    ),
]
MinCaptures = Annotated[int, typer.Option("--min-captures", min=2, help="Captures that a label needs to be learned.")]
BackgroundShare = Annotated[
    float, typer.Option("--background-share", min=0, max=0.9, help="Share of draws that are background.")
]
OF_START = {
    "fields": "--context",
    "lengths": "--lengths",
    "content_bytes": "--content-bytes",
    "subject": "--subject",
    "window_seconds": "--window-seconds",
}
"""What train-traces takes from the run that it starts from: parameter and option."""
Background = Annotated[
    list[Path] | None,
    typer.Option(
        "--background",
        help="Directory written by `extract`, of traffic that bears none of the labels; several times.",
    ),
]
Payload = Annotated[bool, typer.Option("--payload", help="Read payload too, own addresses masked; else headers only.")]

PANEL = "Models of traces"


def register(app: typer.Typer) -> None:
    """Add the commands to `tapline-train`."""
    app.command("pretrain-packets", rich_help_panel=PANEL)(pretrain_packets_command)
    app.command("tune-flows", rich_help_panel=PANEL)(tune_flows_command)
    app.command("train-traces", rich_help_panel=PANEL)(train_traces_command)
    app.command("evaluate-traces", rich_help_panel=PANEL)(evaluate_traces_command)
    app.command("evaluate-suspicion", rich_help_panel=PANEL)(evaluate_suspicion_command)
    app.command("export-traces", rich_help_panel=PANEL)(export_traces_command)


def pretrain_packets_command(
    features: options.Features,
    out: options.Out,
    d: Annotated[int, typer.Option("-d", min=2, help="Width of the network.")] = NETWORK.dim,
    nh: Annotated[int, typer.Option("-nh", min=1, help="Attention heads.")] = NETWORK.heads,
    l: Annotated[int, typer.Option("-l", min=1, help="Layers.")] = NETWORK.depth,  # noqa: E741 - the published letter
    local_heads: Annotated[
        int | None, typer.Option("--local-heads", min=0, help="Heads that attend locally; without: three quarters.")
    ] = None,
    dim_head: Annotated[int, typer.Option("--dim-head", min=0, help="Width of a head; 0: -d by -nh.")] = 0,
    emb_dim: Annotated[int, typer.Option("--emb-dim", min=0, help="Width of tokens and features; 0: as -d.")] = 0,
    b: options.BatchFlows = DEFAULTS.pretrain.batch,
    ep: options.Epochs = DEFAULTS.pretrain.epochs,
    lr: options.Rate = DEFAULTS.pretrain.learning_rate,
    draws: DrawsOf = DEFAULTS.pretrain.draws,
    max_tokens: MaxTokens = DEFAULTS.features.max_tokens,
    payload: Payload = DEFAULTS.features.payload,
    clip: options.Clip = DEFAULTS.clip_norm,
    accumulate: options.Accumulate = DEFAULTS.accumulate,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    device: options.Device = "auto",
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
) -> None:
    """Phase 0: the flow encoder learns to predict the next token; labels are not read."""
    width = emb_dim or d
    n_local = nh - nh // 4 if local_heads is None else local_heads
    sizes = {
        "n_class": 1, "feature_size": width, "emb_dim": width, "dim": d, "depth": l, "heads": nh,
        "dim_head": dim_head or d // nh, "n_local_attn_heads": n_local, "queries": NETWORK.queries,
    }  # fmt: skip
    try:
        network = msgspec.convert(sizes, TracegramNetwork)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error)) from None
    config = msgspec.structs.replace(
        DEFAULTS, network=network, features=TracegramFeatures(payload=payload, max_tokens=max_tokens),
        pretrain=Phase(ep, draws, b, lr),
        clip_norm=clip, accumulate=accumulate, seed=seed, threads=threads, device=device,
    )  # fmt: skip
    job = Job(features, out, config, None, restart, dry_run)
    options.train("pretrain-packets", out, lambda report: pretrain_packets_run(job, report), _learned, _notes)


def tune_flows_command(
    features: options.Features,
    out: options.Out,
    start: Start = None,
    subject: Subject = "mac",
    window_seconds: Window = DEFAULTS.trace.window_seconds,
    b: options.BatchFlows = DEFAULTS.tune.batch,
    ep: options.Epochs = DEFAULTS.tune.epochs,
    lr: options.Rate = DEFAULTS.tune.learning_rate,
    draws: DrawsOf = DEFAULTS.tune.draws,
    clip: options.Clip = DEFAULTS.clip_norm,
    accumulate: options.Accumulate = DEFAULTS.accumulate,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    device: options.Device = "auto",
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
) -> None:
    """Phase 0.5: the flow encoder learns labels; a flow takes its trace's label. Without --start, from nothing."""
    config = msgspec.structs.replace(
        read_trace_run(start).config if start else DEFAULTS, trace=options.trace_settings(subject, window_seconds),
        tune=Phase(ep, draws, b, lr), clip_norm=clip, accumulate=accumulate, seed=seed, threads=threads, device=device,
    )  # fmt: skip
    job = Job(features, out, config, start, restart, dry_run)
    options.train("tune-flows", out, lambda report: tune_flows_run(job, report), _learned, _notes)


def train_traces_command(
    context: typer.Context,
    features: options.Features,
    out: options.Out,
    start: Annotated[
        Path | None, typer.Option("--start", help="Run of tune-flows: the published encoder, frozen.")
    ] = None,
    encoders: Annotated[
        list[Path] | None, typer.Option("--encoders", help="Run of pretrain: an MM4flow encoder that learns too.")
    ] = None,
    background: Background = None,
    lengths: Lengths = JOINT_LENGTHS,
    content_bytes: JointContent = 0,
    fields: Fields = "all",
    min_captures: MinCaptures = DEFAULTS.min_captures,
    background_share: BackgroundShare = DEFAULTS.background_share,
    subject: Subject = "mac",
    window_seconds: Window = DEFAULTS.trace.window_seconds,
    b: Annotated[
        int | None, typer.Option("-b", min=2, help="Traces in a batch; by default as the encoder needs.")
    ] = None,
    ep: Annotated[int | None, typer.Option("-ep", min=1, help="Epochs; by default as the encoder needs.")] = None,
    lr: Annotated[
        float | None, typer.Option("-lr", min=1e-9, max=1, help="Peak learning rate; by default as the encoder needs.")
    ] = None,
    draws: DrawsOf = DEFAULTS.traces.draws,
    time_encoding: Annotated[
        bool, typer.Option("--time-encoding/--no-time-encoding", help="Read gaps between flows and their durations.")
    ] = NETWORK.time_encoding,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
) -> None:
    """Phase 1: aggregation and head learn the labels of traces.

    With --encoders an encoder of MM4flow learns with them. With --start the encoder is the published one, and frozen;
    what it reads and what a trace is are as in that run. Without both, and unless it is told what an encoder of MM4flow
    reads: no encoder, and the context of flows (--context) is all that is read of them.
    """
    if start and encoders:
        raise TrainingError("--start and --encoders: give one of them")
    if start and background:
        raise TrainingError(
            "--background is learned by what learns with the rest, and --start is frozen: leave one out"
        )
    if start and (given := [option for name, option in OF_START.items() if options.is_given(context, name)]):
        raise TrainingError(f"{given[0]}: with --start it is as that run had it: leave it out")
    trace = options.trace_settings(subject, window_seconds)
    reads = encoder_features(lengths, content_bytes)
    config = read_trace_run(start).config if start else _settings(context, encoders or [], reads, fields, trace)
    phase = config.traces
    config = msgspec.structs.replace(
        config, network=msgspec.structs.replace(config.network, time_encoding=time_encoding),
        traces=Phase(ep or phase.epochs, draws, b or phase.batch, lr or phase.learning_rate),
        seed=seed, threads=threads, min_captures=min_captures, background_share=background_share,
    )  # fmt: skip
    job = Job(features, out, config, start, restart, dry_run, encoders or [], background or [])
    options.train("train-traces", out, lambda report: train_traces_run(job, report), _learned, _notes)


def evaluate_traces_command(
    features: options.Features,
    run: Annotated[Path, typer.Option("--run", help="Run of train-traces: its settings are measured.")],
    out: options.Out,
    start: Annotated[
        list[Path] | None,
        typer.Option("--start", help="What the folds start from: run of pretrain-packets, or of pretrain."),
    ] = None,
    variant: Annotated[list[str] | None, typer.Option("--variant", help=f"What else: {', '.join(VARIANTS)}.")] = None,
    packets: Annotated[
        Path | None, typer.Option("--packets", help="Run of pretrain-packets, for the variant tracegram.")
    ] = None,
    folds: Annotated[int | None, typer.Option("--folds", min=2, help="Folds of captures; by default 5.")] = None,
    test: Annotated[
        str,
        typer.Option("--test", help="Beginning of the names of captures to measure, all others learned; for folds."),
    ] = "",
    tuned: Annotated[list[int] | None, typer.Option("--tuned", help="Fold that served to choose settings.")] = None,
    left_out: Annotated[
        list[str] | None, typer.Option("--left-out", help="Label that the variant `unknown` does not learn.")
    ] = None,
    background: Background = None,
    by_day: Annotated[
        bool, typer.Option("--by-day", help="Captures whose names begin with one day (2017-05-24) stay together.")
    ] = False,
    dry_run: options.DryRun = False,
) -> None:
    """Cross-validate a run's settings and variants of them by capture, beside tree ensembles, and calibrate.

    Every fold is kept in --out: an interrupted evaluation goes on where it was.
    """
    settings = TraceEvaluationSettings(
        folds or (1 if test else 5),
        tuple(tuned or ()),
        tuple(variant or ()),
        tuple(left_out or ()),
        tuple(start or ()),
        packets,
        tuple(background or ()),
        by_day,
        test,
    )
    if dry_run:
        options.say_plan(plan_trace_evaluation(features, run, out, settings))
        return
    with options.step_progress("evaluate-traces") as after_step:
        figures = evaluate_traces(features, run, out, settings, after_step)
    _say_figures(figures)
    typer.echo(f"figures and report: {out / EVALUATION}, {out / REPORTS[1]}")


def evaluate_suspicion_command(
    features: options.Features,
    run: Annotated[Path, typer.Option("--run", help="Run of train-traces: its settings are measured.")],
    evaluation: Annotated[Path, typer.Option("--evaluation", help="Directory of evaluate-traces, to add to.")],
    background: Annotated[
        list[Path],
        typer.Option("--background", help="Directory written by `extract`: a source of benign traffic; several times."),
    ],
    laboratory: Annotated[
        list[str] | None,
        typer.Option("--laboratory", help="Beginning of the names of captures of one laboratory, to be left out once."),
    ] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Measure what a run whose labels are all of a malicious kind calls suspicious, and set the threshold of that.

    Every source of the background is left out once, and every label; labels of fewer captures than the run's
    --min-captures are malware that was never learned.
    """
    arguments = (features, run, evaluation, background, laboratory or [])
    if dry_run:
        options.say_plan(plan_suspicion(*arguments))
        return
    with options.step_progress("evaluate-suspicion") as after_step:
        figures = evaluate_suspicion(*arguments, after_step)
    for row in figures.sources:
        typer.echo(
            f"{row.source} left out: {1000 * row.alarms:.1f} false alarms per 1,000 of {row.traces} traces, "
            f"{row.caught:.1%} of malware never learned called suspicious"
        )
    typer.echo(f"threshold {figures.threshold:.4f}; figures: {evaluation / SUSPICION}")


def export_traces_command(
    run: Annotated[Path, typer.Option("--run", help="Run of train-traces.")],
    out: Annotated[Path, typer.Option("--out", help="Repository: the checkpoint goes to NAME/VERSION below it.")],
    name: options.Name,
    version: options.Version,
    evaluation: Annotated[Path | None, typer.Option("--evaluation", help="Directory of evaluate-traces.")] = None,
    notes: options.Notes = None,
    dry_run: options.DryRun = False,
) -> None:
    """Write a run as a checkpoint that tapline serves: safetensors, ONNX, card; calibrated where it was evaluated."""
    text = options.read_notes(notes)
    options.write_or_say(
        out / name / version,
        dry_run,
        lambda folder: export_traces_run(run, folder, name, version, evaluation, text),
    )


def _settings(
    context: typer.Context,
    encoders: Sequence[Path],
    reads: Mm4flowFeatures,
    fields: Literal["all", "behaviour"],
    trace: TraceSettings,
) -> TraceTrainingConfig:
    """The settings of training without --start: with an encoder of MM4flow where anything is said of one."""
    if not encoders and not options.is_given(context, "lengths") and not options.is_given(context, "content_bytes"):
        return context_config(trace, CONTEXTS[fields])
    if options.is_given(context, "fields"):
        raise TrainingError("--context is of a model without an encoder: leave it out, or what is said of the encoder")
    return joint_of(encoders, reads, trace)


def _say_figures(figures: TraceEvaluation) -> None:
    alike = look_alike({row.label for row in figures.classes})
    for row in figures.variants:
        low, high = row.all_classes.interval.low, row.all_classes.interval.high
        merged = f", look-alike devices merged {row.merged.macro_f1:.3f}" if alike else ""
        gain = "" if row.name.startswith(REFERENCE) else f", gain on trees {row.gain:+.3f}"
        typer.echo(f"{row.name}: macro-F1 {row.all_classes.macro_f1:.3f} ({low:.3f} to {high:.3f}){merged}{gain}")


def _learned(run: TraceRun) -> list[str | None]:
    return [
        f"{run.traces} traces of {len(run.labels)} labels" if run.traces else None,
        f"{run.background_traces} background traces" if run.background_traces else None,
    ]


def _notes(run: TraceRun) -> list[str]:
    return [f"too few captures, not learned: {', '.join(run.not_learned)}"] if run.not_learned else []
