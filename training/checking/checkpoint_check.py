"""Evaluates a checkpoint on labelled captures: finds it, classifies as it serves, writes figures, report, verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tapline.models.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    TracegramCheckpoint,
    checkpoint_kind,
    read_any_checkpoint,
)
from tapline.service.engines.loading import load_engine, load_trace_engine
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT, Classifier
from tapline.service.inference.repository import Repository, UnknownModelError, newest_version, shipped_checkpoint
from tapline.service.inference.trace_loading import fitting
from tapline.training.checking.check_figures import check_figures, known_things
from tapline.training.checking.check_record import CheckRecord, Joined
from tapline.training.checking.check_report import check_page
from tapline.training.checking.flow_verdicts import flow_verdicts
from tapline.training.checking.label_names import LabelNames, read_names
from tapline.training.checking.out_directory import out_notes
from tapline.training.checking.own_captures import LabelSource, OwnLabels, read_own_labels, verdicts_note
from tapline.training.checking.provenance import provenance
from tapline.training.checking.said import Said
from tapline.training.checking.trace_verdicts import trace_verdicts
from tapline.training.checking.verdict_table import VERDICT_TABLE, write_verdict_table
from tapline.training.data.label_map import LabelError
from tapline.training.data.origins import ExtractError, Origin, find_distinct
from tapline.training.evaluation.page import REPORTS, write_report
from tapline.training.evaluation.verdict_file import write_verdicts
from tapline.training.evaluation.wording import many
from tapline.training.loop.config import TrainingError
from tapline.training.loop.plan import Plan
from tapline.training.loop.run_files import EVALUATION, VERDICTS, write_json

HOW = "verdicts of a checkpoint on captures"
MAX_TOLD_WARNINGS = 3


@dataclass(frozen=True)
class CheckSettings:
    """What is measured: a checkpoint, by its directory or the name of one that ships, on captures with labels, and how
    names of tables become its labels."""

    checkpoint: str
    captures: Sequence[Path]
    labels: LabelSource
    maps: Sequence[str] = ()
    ports: bool = True
    threads: int = 0


@dataclass
class _Todo:
    checkpoint: Checkpoint | TracegramCheckpoint
    directory: Path
    origins: list[Origin]
    names: LabelNames
    labels: OwnLabels
    notes: list[str]


def check_checkpoint(
    settings: CheckSettings, out: Path, progress: Callable[[int], None] = lambda _: None
) -> CheckRecord:
    """Measure a checkpoint on labelled captures, and write figures, report and verdicts into `out`.

    Raises:
        CheckpointError: there is none, or it cannot be served.
        LabelError: labels cannot be read, or are of nothing in the captures.
        ExtractError: there are no captures.
        TrainingError: `out` holds something else.
    """
    started = time.monotonic()
    todo = _prepare(settings, out)
    said = _say(todo, settings, progress)
    if not said.labels:
        raise LabelError(_why_nothing(said, todo, settings))
    _refuse_strange_tools(said, todo)
    checkpoint = todo.checkpoint
    rule = checkpoint.rule(ports=settings.ports) if isinstance(checkpoint, Checkpoint) else None
    threshold = rule.threshold if rule is not None else checkpoint.unknown.threshold
    title = f"{checkpoint.name} {checkpoint.version}"
    known = known_things(said, checkpoint.labels, title, threshold, todo.names)
    record = CheckRecord(
        checkpoint=checkpoint.name,
        version=checkpoint.version,
        directory=str(todo.directory),
        unit=said.unit,
        captures=[str(path) for path in settings.captures],
        tolerance_seconds=settings.labels.tolerance_seconds,
        ports="on" if settings.ports else "off",
        joined=_joined(said, todo),
        left_out=dict(sorted(said.left_out.items())),
        warnings=said.warnings,
        notes=todo.notes,
        figures=check_figures(known, todo.names),
        provenance=provenance(_hashes(checkpoint), todo.origins, settings.labels, settings.maps),
        seconds=round(time.monotonic() - started, 1),
    )
    out.mkdir(parents=True, exist_ok=True)
    page = check_page(known.measured, record)
    write_json(out / EVALUATION, record)
    write_report(out, page)
    write_verdict_table(out, known)
    write_verdicts(out, page, HOW, _settings(checkpoint, record))
    return record


def plan_check(settings: CheckSettings, out: Path) -> Plan:
    """What `check_checkpoint` would do.

    Raises:
        CheckpointError, LabelError, ExtractError, TrainingError: as there, before captures are read.
    """
    todo = _prepare(settings, out)
    table = todo.labels.table
    unit = "flows" if isinstance(todo.checkpoint, Checkpoint) else "traces"
    facts = [
        f"{todo.checkpoint.name} {todo.checkpoint.version} ({len(todo.checkpoint.labels)} labels of {unit})",
        "1 capture or log" if len(todo.origins) == 1 else f"{len(todo.origins):,} captures or logs",
        f"labels by {table.name} ({many(table.lines, 'row')})" if table else "folders as labels",
        *(f"beside {name} ({many(tool.lines, 'row')})" for name, tool in todo.labels.tools),
    ]
    notes = [*out_notes(out), *todo.notes]
    return Plan("evaluate", facts, [out / name for name in (EVALUATION, VERDICTS, VERDICT_TABLE, *REPORTS)], notes)


def find_checkpoint(text: str) -> Path:
    """The directory of a checkpoint: of a directory, the newest version in it, or one that ships by its name.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return Repository().find(text)
    except UnknownModelError:
        if not Path(text).is_dir():
            shipped = ", ".join(Repository().names())
            raise CheckpointError(
                f"{text}: neither a checkpoint directory nor the name of one that ships ({shipped})"
            ) from None
        return newest_version(Path(text))


def _prepare(settings: CheckSettings, out: Path) -> _Todo:
    out_notes(out)
    directory = find_checkpoint(settings.checkpoint)
    checkpoint = read_any_checkpoint(directory)
    if isinstance(checkpoint, TracegramCheckpoint) and not settings.ports:
        raise TrainingError(f"--ports off: {checkpoint.name} is of traces: leave it out")
    if not settings.captures:
        raise ExtractError("no captures: give --captures PATH, several times for several")
    names = LabelNames(checkpoint.labels, read_names(settings.maps))
    origins, again = find_distinct(settings.captures)
    labels = read_own_labels(settings.labels, names)
    verdicts = verdicts_note(labels.table)
    notes = [*([verdicts] if verdicts else []), *_read_once(again), *labels.map_notes(origins, checkpoint)]
    return _Todo(checkpoint, directory, origins, names, labels, notes)


def _read_once(again: Sequence[Path]) -> list[str]:
    if not again:
        return []
    shown = ", ".join(map(str, again[:MAX_TOLD_WARNINGS])) + (", ..." if len(again) > MAX_TOLD_WARNINGS else "")
    return [f"{many(len(again), 'capture')} given more than once, read once: {shown}"]


def _say(todo: _Todo, settings: CheckSettings, progress: Callable[[int], None]) -> Said:
    if checkpoint_kind(todo.directory) == "mm4flow":
        engine = load_engine("onnx", todo.directory, settings.threads)
        classifier = Classifier(engine, ports=settings.ports)
        return flow_verdicts(classifier, todo.origins, todo.labels, progress)
    assert isinstance(todo.checkpoint, TracegramCheckpoint)
    flows = load_engine("onnx", _flow_checkpoint(todo.directory, todo.checkpoint), settings.threads)
    traces = load_trace_engine("onnx", todo.directory, settings.threads)
    engines = fitting([traces], flows.checkpoint, required=True, warn=lambda _: None)
    return trace_verdicts(Classifier(flows, trace_engines=engines), todo.origins, todo.labels, progress)


def _flow_checkpoint(directory: Path, checkpoint: TracegramCheckpoint) -> Path:
    """The flow checkpoint beside which traces are classified: the one whose embeddings they read, in their repository,
    else the one that ships."""
    if (reads := checkpoint.flow_checkpoint) is not None:
        beside = directory.resolve().parent.parent / reads.name / reads.version
        if (beside / MANIFEST).is_file():
            return beside
        return shipped_checkpoint(reads.name)
    return shipped_checkpoint(DEFAULT_CHECKPOINT)


def _joined(said: Said, todo: _Todo) -> Joined:
    table, account = todo.labels.table, said.account
    if table is None:
        folders = "the first folder below the captures' root"
        return Joined(folders, names=todo.names.changed, no_labels=dict(todo.labels.no_labels))
    return Joined(
        source=table.name,
        rows=table.lines,
        rows_without_thing=table.lines - table.malformed - len(account.lines),
        rows_malformed=table.malformed,
        by=account.joined,
        contradicted=account.ambiguous,
        names=todo.names.changed,
        no_labels=dict(todo.labels.no_labels),
        clock_hint=account.clock_hint(),
    )


def _why_nothing(said: Said, todo: _Todo, settings: CheckSettings) -> str:
    """Why no flow or trace has a label, with what to look at."""
    table = todo.labels.table
    if table is None:
        return (
            "no flow is in a folder: --label-from-folder takes the first folder below --captures, as "
            "captures/LABEL/FILE.pcap"
        )
    text = f"{table.name}: none of its rows ({many(table.lines, 'label')}) is of a {said.unit} in these captures"
    of_hosts = said.unit == "flow" and table.labels_subjects
    reasons = [
        "its rows are of hosts, by which only traces can be labelled" if of_hosts else "",
        said.account.clock_hint(),
        _no_labels(todo.labels.no_labels),
        f"{said.account.ambiguous} are left out, on which rows contradict each other" if said.account.ambiguous else "",
        _other_captures(table.captures, todo.origins),
        "; ".join(f"{capture}: {why}" for capture, why in list(said.warnings.items())[:MAX_TOLD_WARNINGS]),
    ]
    told = "; ".join(reason for reason in reasons if reason)
    return f"{text}: {told or 'no uid, Community ID or endpoints of them are in it'}"


def _hashes(checkpoint: Checkpoint | TracegramCheckpoint) -> dict[str, str]:
    return {name: file.sha256 for name, file in checkpoint.files.items()}


def _refuse_strange_tools(said: Said, todo: _Todo) -> None:
    for tool, (_, table) in zip(said.tools, todo.labels.tools, strict=True):
        if not tool.account.lines:
            hint = tool.account.clock_hint() or _other_captures(table.captures, todo.origins)
            raise LabelError(
                f"{table.name}: none of the rows of {tool.name} ({many(table.lines, 'prediction')}) is of a labelled "
                f"{said.unit}: {hint or 'no uid, Community ID or endpoints of them are in it'}"
            )


def _no_labels(words: Mapping[str, int]) -> str:
    told = ", ".join(f"{word} ({count:,})" for word, count in words.items())
    return f"what it says of them, {told}, is taken for no label" if told else ""


def _other_captures(named: set[str], origins: Sequence[Origin]) -> str:
    if not named:
        return ""
    return f"it names captures as {min(named)}, and these are called as {origins[0].capture}"


def _settings(checkpoint: Checkpoint | TracegramCheckpoint, record: CheckRecord) -> dict[str, object]:
    """What of the checkpoint decides its verdicts, and of what they are, as `compare` shows it."""
    manifest: dict[str, object] = msgspec.to_builtins(checkpoint)
    left_out = ("metrics", "provenance", "files", "context")
    return {name: value for name, value in manifest.items() if name not in left_out} | {
        "ports": record.ports == "on",
        "measured": record.provenance.settings(record.joined.by),
    }
