"""The model card: a checkpoint's README, written from records alone. Every number in it was measured by a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.checkpoint import Checkpoint
from training.corpus import ClassCount
from training.finetune import TrainingConfig
from training.metrics import Interval
from training.records import EvaluationRecord
from training.report import FALSE_REJECTION, MIN_FLOWS, Evaluation


def render_card(
    manifest: Checkpoint,
    labels: Sequence[ClassCount],
    background: Sequence[ClassCount],
    config: TrainingConfig,
    record: EvaluationRecord | None,
    hardware: str,
    seconds: float,
    notes: str,
) -> str:
    """The card as Markdown; `notes` (data and citation, what it is not good for, commands) is put in as it is."""
    parts = [
        _head(manifest, config, hardware, seconds),
        _evaluation(record) if record else "Not evaluated: the confidence is not calibrated.",
        notes.strip(),
        _classes_learned(labels, background),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(manifest: Checkpoint, config: TrainingConfig, hardware: str, seconds: float) -> str:
    network, features = manifest.network, manifest.features
    classes = f"{len(manifest.labels)} labels{' and a background class' if manifest.unknown.background else ''}"
    return (
        f"# {manifest.name} {manifest.version}\n\n"
        f"MM4flow, width/layers/heads/feed-forward "
        f"{network.d_model}/{network.n_layer}/{network.n_head}/{network.dim_ff}, {classes}. It reads "
        f"the first {features.payload_lengths} payload lengths and {features.content_bytes} content bytes each way of a "
        f"flow, from {manifest.min_packets} payload packet up. Addresses and ports are not read.\n\n"
        f"Fine-tuned in {seconds / 60:.1f} minutes on {hardware}: {config.epochs} epochs of {config.draws} flows drawn "
        f"by class and capture, half of them cut to what an early verdict sees, seed {config.seed}."
    )


def _evaluation(record: EvaluationRecord) -> str:
    figures, settings = record.figures, record.settings
    tuned = ", ".join(str(fold) for fold in settings.tuned)
    remark = (
        f" Settings were chosen on fold(s) {tuned}, which every figure here leaves out but the table of folds."
        if tuned
        else ""
    )
    lines = [
        "## How good it is",
        "",
        f"Cross-validated: {settings.folds} folds of whole captures, no capture on both sides, labels spread as evenly "
        f"as possible. Macro-F1 is over the classes with {MIN_FLOWS} flows or more in the fold; intervals are 95 % of a "
        f"bootstrap over captures.{remark} The tree ensemble (300 balanced extremely randomised trees on the first 16 "
        "lengths and 48 bytes each way) learns from the same captures.",
        "",
        "| | this model | tree ensemble |",
        "|---|---|---|",
        f"| macro-F1 | {figures.macro_f1:.3f} ({_range(figures.macro_f1_interval)}) | "
        f"{figures.macro_f1_trees:.3f} ({_range(figures.macro_f1_trees_interval)}) |",
        f"| *unknown* protocols, AUROC of the confidence | {figures.unknown_auroc:.3f} | "
        f"{figures.unknown_auroc_trees:.3f} |",
        "",
        f"Gain in macro-F1, 95 %: {_range(figures.gain_interval)}. Accuracy over flows {figures.accuracy:.3f}. "
        f"Expected calibration error {figures.calibration_error:.3f} (15 bins; each fold with the temperature of the "
        f"other folds; the checkpoint's is {figures.temperature:.2f}).",
        "",
        f"*Unknown*: the threshold {figures.threshold:.3f} is set to reject {FALSE_REJECTION:.0%} of known flows "
        f"(captures weighed by the root of their flows); it rejects {figures.known_rejected:.1%} of the known and "
        f"{figures.unknown_rejected:.1%} of the flows of protocols that the fold's model never saw. Half of the rare "
        "protocols, another half in each fold, is background to train on; the other half is what is measured.",
        "",
        _folds(figures),
        "",
        "### By payload packets seen",
        "",
        _row(figures.macro_f1_by_packets),
        _row("---" for _ in figures.macro_f1_by_packets),
        _row(f"{value:.3f}" for value in figures.macro_f1_by_packets.values()),
        "",
        "### By class",
        "",
        "| class | captures | flows | precision | recall | F1 |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.label} | {row.captures} | {row.support} | {row.precision:.2f} | {row.recall:.2f} | {row.f1:.2f} |"
            for row in figures.classes
        ),
        "",
        "### Largest confusions",
        "",
        "| is | was called | flows | in captures |",
        "|---|---|---|---|",
        *(f"| {row.label} | {row.called} | {row.flows} | {row.captures} |" for row in figures.confusions),
        "",
        f"The evaluation took {record.seconds / 60:.0f} minutes.",
    ]
    return "\n".join(lines)


def _folds(figures: Evaluation) -> str:
    lines = [
        "| fold | captures | flows | classes | macro-F1 | trees | accuracy | trees | ECE | AUROC | trees |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fold in figures.folds:
        name = f"{fold.fold} (settings chosen here)" if fold.tuned else str(fold.fold)
        lines.append(
            f"| {name} | {fold.captures} | {fold.flows} | {fold.classes} | {fold.macro_f1:.3f} | "
            f"{fold.macro_f1_trees:.3f} | {fold.accuracy:.3f} | {fold.accuracy_trees:.3f} | "
            f"{fold.calibration_error:.3f} | {fold.unknown_auroc:.3f} | {fold.unknown_auroc_trees:.3f} |"
        )
    return "\n".join(lines)


def _classes_learned(labels: Sequence[ClassCount], background: Sequence[ClassCount]) -> str:
    lines = ["## What it learned from", "", "| class | captures | flows |", "|---|---|---|"]
    lines += [f"| {count.label} | {count.captures} | {count.flows} |" for count in labels]
    if background:
        names = ", ".join(sorted(count.label for count in background))
        flows = sum(count.flows for count in background)
        lines += ["", f"Background, {flows} flows of {len(background)} protocols that are too rare to learn: {names}."]
    return "\n".join(lines)


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
