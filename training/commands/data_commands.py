"""The commands about data: extract, labels, split. Options and output; what they do is in the modules they call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import HeadsKind
from tapline.models.foreign_text import clean
from tapline.training.commands.options import (
    MIN_CAPTURES,
    ContentBytes,
    DryRun,
    Features,
    LabelColumn,
    Out,
    Packets,
    Processes,
    Seed,
    TimeShift,
    Tolerance,
    console,
    default_processes,
    progress_bar,
    say,
    say_plan,
)
from tapline.training.data.corpus import ClassCount, count_labels
from tapline.training.data.corrections import Corrections, read_corrections
from tapline.training.data.extraction import ExtractSettings, Outline, extract, outline
from tapline.training.data.label_map import LabelMap, read_label_map
from tapline.training.data.label_reading import read_labels
from tapline.training.data.label_table import TOLERANCE_SECONDS
from tapline.training.data.labelled_traces import MIN_CAPTURES as TRACE_CAPTURES
from tapline.training.data.labels import LabelError, Labels
from tapline.training.data.leaks import find_leaks
from tapline.training.data.origins import Origin, find_origins
from tapline.training.data.partition import PARTS, By, Partition, make_partition, write_partition
from tapline.training.data.samples import Manifest, features_of
from tapline.training.data.split import BACKGROUND
from tapline.training.data.store import StoredSamples, open_samples
from tapline.training.loop.plan import Plan, joined, too_few
from tapline.training.loop.run_files import scratch_folder

PANEL = "Data"
MAX_TOLD_UIDS = 5
"""So many corrections that found no flow are named."""


def register(app: typer.Typer) -> None:
    """Add the commands to `tapline-train`."""
    app.command("extract", rich_help_panel=PANEL)(extract_command)
    app.command("labels", rich_help_panel=PANEL)(labels_command)
    app.command("split", rich_help_panel=PANEL)(split_command)


def extract_command(
    captures: Annotated[list[Path], typer.Argument(help="Captures, logs, or folders of them.")],
    out: Out,
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV table of labels, one row for each flow.")] = None,
    column: LabelColumn = "",
    confidence: Annotated[
        list[str] | None,
        typer.Option("--confidence", help="Use only rows whose column `confidence` begins so; several times."),
    ] = None,
    label_from_folder: Annotated[
        bool, typer.Option("--label-from-folder", help="The first folder below the given one is the label.")
    ] = False,
    corrections: Annotated[
        Path | None,
        typer.Option(
            "--corrections", help="CSV with uid,label (and community_id,start_us): what analysts say, before all else."
        ),
    ] = None,
    label_map: Annotated[
        Path | None,
        typer.Option("--label-map", help="CSV with label,becomes,why: labels to merge, or to leave out (empty)."),
    ] = None,
    tolerance: Tolerance = TOLERANCE_SECONDS,
    time_shift: TimeShift = 0.0,
    heads: Annotated[HeadsKind, typer.Option("--heads", help="Packet heads to keep, for Tracegram.")] = "none",
    processes: Processes = default_processes(),  # noqa: B008 - a number
    dry_run: DryRun = False,
) -> None:
    """Read captures, Zeek's logs or flow lines into a feature directory; goes on where it was interrupted."""
    table = (
        read_labels(labels, column, confidence or (), tolerance_seconds=tolerance, shift_seconds=time_shift)
        if labels
        else None
    )
    mapped = read_label_map(label_map) if label_map else LabelMap()
    source = Labels(table, label_from_folder, read_corrections(corrections) if corrections else Corrections(), mapped)
    origins = find_origins(captures)
    if strange := _not_mapped(source, origins):
        say(f"note: {mapped.name} names labels that nothing here bears: {', '.join(strange)}")
    settings = ExtractSettings(source, heads, processes)
    if dry_run:
        say_plan(_extract_plan(outline(origins, out, settings), out, settings))
        return
    with progress_bar() as progress:
        task = progress.add_task("captures", total=len(origins))
        manifest = extract(origins, out, settings, lambda count: progress.advance(task, count))
    _tell(manifest, source, origins)
    typer.echo(f"{manifest.samples} flows of {manifest.captures} captures, {manifest.labelled} labelled: {out}")


def _tell(manifest: Manifest, labels: Labels, origins: Sequence[Origin]) -> None:
    """Say what was left out, and what of the labels and corrections found no flow."""
    for capture, warning in manifest.warnings.items():
        say(clean(f"{capture}: {warning}"))
    for reason, count in sorted(manifest.left_out.items()):
        console.print(clean(f"left out: {count} x {reason}"), markup=False, highlight=False)
    if missing := manifest.corrections_not_there:
        named, more = ", ".join(missing[:MAX_TOLD_UIDS]), len(missing) - MAX_TOLD_UIDS
        also = f" and {more} more" if more > 0 else ""
        say(clean(f"note: corrections of flows that are not here, by uid or Community ID and start: {named}{also}"))
    borne = {label for origin in origins if (label := labels.map.of(origin.folder))} if labels.from_folder else set()
    if empty := sorted(borne - set(manifest.labels)):
        console.print(f"labels without a flow: {', '.join(empty)}", markup=False, highlight=False)
    if manifest.clock_hint:
        say(f"note: {manifest.clock_hint}")
    if not manifest.labelled and (hint := _unlabelled(labels)):
        say(f"note: no flow has a label: {hint}")


def _not_mapped(labels: Labels, origins: Sequence[Origin]) -> list[str]:
    """The labels of the map that come from nowhere: misspelt ones, mostly."""
    there = {*(row.label for row in labels.corrections), *(labels.table.labels if labels.table else ())}
    if labels.from_folder:
        there |= {origin.folder for origin in origins if origin.folder}
    return sorted(set(labels.map.becomes) - there)


def _unlabelled(labels: Labels) -> str:
    """Why labels that were asked for may not be there, "" where none were."""
    if labels.from_folder:
        return "--label-from-folder takes the first folder below the one given: give the folder that holds the labels"
    return f"none of these flows is in {labels.table.name}" if labels.table else ""


def _extract_plan(found: Outline, out: Path, settings: ExtractSettings) -> Plan:
    without = found.labels.pop(None, 0)
    labels = settings.labels
    facts = [
        f"{found.captures} captures or logs, {found.size_bytes / 1e6:,.1f} MB",
        f"{found.shards} shards in {settings.processes} process(es)",
        f"{found.finished} of them finished by an interrupted call" if found.finished else None,
        f"packet heads: {settings.heads}",
        f"{len(found.labels)} folders as labels" if labels.from_folder else None,
        f"labels by {labels.table.name} ({labels.table.rows} rows)" if labels.table else None,
        f"{len(labels.corrections)} corrections" if labels.corrections else None,
        f"{len(labels.map.becomes)} labels changed by {labels.map.name}" if labels.map.becomes else None,
    ]
    notes = too_few(sorted((str(label), count) for label, count in found.labels.items()), MIN_CAPTURES)
    if without and (labels.from_folder or labels.table):
        notes.append(f"{without} captures have no label: pre-training alone reads them")
    if out.exists():
        notes.append(f"the features in {out} are replaced when the new ones are whole")
    return Plan("extract", joined(facts), [out], notes)


def labels_command(features: Features) -> None:
    """Show how many captures and flows each label has, and which labels are in too few captures to be learned."""
    counts = count_labels(open_samples(features, scratch_folder()))
    for count in counts:
        typer.echo("\t".join([count.label, str(count.captures), str(count.flows), *_not_learned(count)]))
    if not counts:
        raise LabelError("no flow has a label: extract with --labels or --label-from-folder")
    flows = sum(count.captures >= MIN_CAPTURES and count.label != BACKGROUND for count in counts)
    traces = sum(count.captures >= TRACE_CAPTURES for count in counts)
    say(f"label, captures, flows of {len(counts)} labels: finetune learns {flows} of them, train-traces {traces}")


def _not_learned(count: ClassCount) -> list[str]:
    """Why a label is not learned, nothing where it is: flows need more captures than traces."""
    captures = count.captures
    if count.label == BACKGROUND:
        return ["not learned by finetune as a label: it is background"]
    if captures < TRACE_CAPTURES:
        needs = f"train-traces needs {TRACE_CAPTURES}, finetune {MIN_CAPTURES} (--min-captures)"
        return [f"not learned: a single capture; {needs}"]
    return [f"not learned by finetune: it needs {MIN_CAPTURES} captures (--min-captures)"] * (captures < MIN_CAPTURES)


def split_command(
    features: Features,
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="File to write.")],
    by: Annotated[
        By, typer.Option("--by", help="What stays together; flow: nothing, figures are then too good.")
    ] = "capture",
    validation: Annotated[float, typer.Option("--validation", min=0, max=1, help="Share for validation.")] = 0.2,
    test: Annotated[float, typer.Option("--test", min=0, max=1, help="Share for the test.")] = 0.2,
    seed: Seed = 0,
    packets: Packets = 32,
    content_bytes: ContentBytes = 64,
    dry_run: DryRun = False,
) -> None:
    """Split features into training, validation and test, and report what leaks across."""
    samples = open_samples(features, scratch_folder())
    partition = make_partition(samples, by, validation, test, seed, features_of(features))
    if dry_run:
        notes = [f"the file {out} is replaced"] if out.exists() else []
        say_plan(Plan("split", [f"{len(samples)} flows by {by}"], [out], notes))
    else:
        write_partition(out, partition)
    _show_parts(samples, partition, Mm4flowFeatures(packets, content_bytes))
    if not dry_run:
        typer.echo(f"{len(samples)} flows in {len(PARTS)} parts by {by}: {out}")


def _show_parts(samples: StoredSamples, partition: Partition, features: Mm4flowFeatures) -> None:
    parts = partition.parts(samples)
    for place, part in enumerate(PARTS):
        mine = samples.take(parts == place)
        captures, labels = len(set(mine.captures.tolist())), len(set(mine.labels.tolist()) - {-1})
        typer.echo(f"{part}\t{len(mine)} flows\t{captures} captures\t{labels} labels")
    for leak in find_leaks(samples, parts, features):
        typer.echo(
            f"leaks into {leak.part}: {leak.same} of {leak.flows} flows are the same to the model as one for training "
            f"({leak.same / leak.flows:.0%}), {leak.near} nearly ({leak.near / leak.flows:.0%}); "
            f"{leak.near_of_other_label} of these under another label"
        )
