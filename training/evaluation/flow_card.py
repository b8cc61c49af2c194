"""The model card: a checkpoint's README, written from records alone. Every number in it was measured by a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tapline.models.checkpoint import Checkpoint
from tapline.training.data.corpus import ClassCount
from tapline.training.data.partition import PARTS
from tapline.training.evaluation.calibration import MOST_FLOWS
from tapline.training.evaluation.evaluation_record import EvaluationRecord
from tapline.training.evaluation.flow_figures import MIN_FLOWS, Evaluation
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.scores import Interval


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
        _int8(manifest),
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
        f"the first {features.payload_lengths} payload lengths and {features.content_bytes} content bytes each way of "
        f"a flow, from {manifest.min_packets} payload packet up. Addresses and ports are not read.\n\n"
        f"Fine-tuned in {seconds / 60:.1f} minutes on {hardware}: {config.epochs} epochs of {config.draws} flows drawn "
        f"by class and capture, half of them cut to what an early verdict sees, seed {config.seed}."
    )


def _evaluation(record: EvaluationRecord) -> str:
    figures = record.figures
    return "\n\n".join(
        (
            "## How good it is",
            _method(record),
            _headline(record),
            _folds(record),
            "### By payload packets seen\n\n"
            + _by_points(figures.macro_f1_by_packets, figures.calibration_error_by_packets)
            + f"\n\nEarly verdicts are worth giving after {figures.early_packets} payload packet(s).",
            "### By content bytes each way\n\n"
            + _by_points(figures.macro_f1_by_content_bytes, figures.calibration_error_by_content_bytes),
            "### By class\n\n" + _by_class(figures),
            "### Largest confusions\n\n" + _confusions(figures),
            f"The evaluation took {record.seconds / 60:.0f} minutes.",
        )
    )


def _int8(manifest: Checkpoint) -> str:
    figures = manifest.metrics.get("int8")
    if figures is None:
        return ""
    return (
        "## int8\n\n"
        f"`model.int8.onnx` says the same label as `model.onnx` for {figures['agreement']:.2%} of {figures['flows']} "
        f"labelled flows (macro-F1 {figures['macro_f1_int8']:.4f} against {figures['macro_f1']:.4f}; these are "
        "flows of the features given to the export, so compare the two and do not read either as an accuracy)."
    )


def _method(record: EvaluationRecord) -> str:
    settings = record.settings
    how = (
        f"Measured on the part for the test of the split {record.split}, calibrated on the part for validation."
        if record.split
        else f"Cross-validated: {settings.folds} folds of whole captures, no capture on both sides, labels spread as "
        "evenly as possible."
    )
    text = (
        f"{how} Macro-F1 is over the classes with {MIN_FLOWS} flows or more in the fold; intervals are 95 % of "
        "a bootstrap over captures. The tree ensemble (300 balanced extremely randomised trees on the first 16 lengths "
        "and 48 bytes each way) and the forest (300 random trees on statistics of the lengths) learn from the same "
        "captures."
    )
    if settings.tuned and not record.split:
        tuned = " and ".join(str(fold) for fold in settings.tuned)
        text += (
            f" Settings were chosen on fold {tuned}: every figure here leaves them out, but those of the table of "
            "folds that are marked so."
        )
    return text


def _headline(record: EvaluationRecord) -> str:
    figures = record.figures
    fitted = "each fold with the temperature of the other folds"
    if record.split:
        fitted = "the temperature is the one that fits the part for validation"
    return (
        "| | this model | tree ensemble |\n|---|---|---|\n"
        f"| macro-F1 | {figures.macro_f1:.3f} ({_range(figures.macro_f1_interval)}) | "
        f"{figures.macro_f1_trees:.3f} ({_range(figures.macro_f1_trees_interval)}) |\n"
        f"| *unknown* labels, AUROC of the confidence | {_figure(figures.unknown_auroc)} | "
        f"{_figure(figures.unknown_auroc_trees)} |\n\n"
        f"Gain in macro-F1 on the tree ensemble, 95 %: {_range(figures.gain_interval)}. Macro-F1 of the forest "
        f"{figures.macro_f1_forest:.3f}, of always the most frequent class {figures.macro_f1_majority:.3f}. Weighted "
        f"F1 {figures.weighted_f1:.3f}, accuracy over flows {figures.accuracy:.3f}. "
        f"Expected calibration error {figures.calibration_error:.3f} (15 bins; {fitted}; the checkpoint's is "
        f"{figures.temperature:.2f}).\n\n"
        f"Where the flows of a class in one capture weigh no more than {MOST_FLOWS} together: macro-F1 "
        f"{figures.macro_f1_capped:.3f}, tree ensemble {figures.macro_f1_capped_trees:.3f}, calibration error "
        f"{figures.calibration_error_capped:.3f}.\n\n"
        f"{_unknown(figures)}"
    )


def _unknown(figures: Evaluation) -> str:
    text = (
        f"*Unknown*: the threshold {figures.threshold:.3f} is set to reject {figures.false_rejection:.0%} of known "
        f"flows (a capture weighs no more than {MOST_FLOWS} flows of a class); it rejects "
        f"{figures.known_rejected:.1%} of the known"
    )
    if figures.unknown_rejected is None:
        return f"{text}. There was no rarer label to measure on."
    return (
        f"{text} and {figures.unknown_rejected:.1%} of the flows of labels that the fold's model never saw. Half of "
        "the rare labels, another half in each fold, is background to train on; the other half is what is measured."
    )


def _by_points(macro_f1: Mapping[str, float], error: Mapping[str, float]) -> str:
    rows = (
        ["", *macro_f1],
        ["---"] * (len(macro_f1) + 1),
        ["macro-F1", *(f"{value:.3f}" for value in macro_f1.values())],
        ["calibration error", *(f"{value:.3f}" for value in error.values())],
    )
    return "\n".join(_row(row) for row in rows)


def _by_class(figures: Evaluation) -> str:
    rows = [
        f"| {row.label} | {row.captures} | {row.support} | {row.precision:.2f} | {row.recall:.2f} | {row.f1:.2f} |"
        for row in figures.classes
    ]
    return "\n".join(["| class | captures | flows | precision | recall | F1 |", "|---|---|---|---|---|---|", *rows])


def _confusions(figures: Evaluation) -> str:
    if not figures.confusions:
        return "None: every flow was called by its label."
    rows = [f"| {row.label} | {row.called} | {row.flows} | {row.captures} |" for row in figures.confusions]
    return "\n".join(["| is | was called | flows | in captures |", "|---|---|---|---|", *rows])


def _folds(record: EvaluationRecord) -> str:
    names = "captures | flows | classes | macro-F1 | trees | accuracy | trees | ECE | AUROC | trees"
    lines = [f"| {'part' if record.split else 'fold'} | {names} |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    for fold in record.figures.folds:
        name = f"{fold.fold} (settings chosen here)" if fold.tuned else str(fold.fold)
        if record.split:  # its part for validation counts as tuned: it calibrates, and is in no figure
            name = PARTS[1 + fold.fold]
        lines.append(
            f"| {name} | {fold.captures} | {fold.flows} | {fold.classes} | {_figure(fold.macro_f1)} | "
            f"{_figure(fold.macro_f1_trees)} | {fold.accuracy:.3f} | {fold.accuracy_trees:.3f} | "
            f"{fold.calibration_error:.3f} | {_figure(fold.unknown_auroc)} | {_figure(fold.unknown_auroc_trees)} |"
        )
    return "\n".join(lines)


def _classes_learned(labels: Sequence[ClassCount], background: Sequence[ClassCount]) -> str:
    lines = ["## What it learned from", "", "| class | captures | flows |", "|---|---|---|"]
    lines += [f"| {count.label} | {count.captures} | {count.flows} |" for count in labels]
    if background:
        names = ", ".join(sorted(count.label for count in background))
        flows = sum(count.flows for count in background)
        lines += ["", f"Background, {flows} flows of {len(background)} labels that are too rare to learn: {names}."]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
