"""The card of a flow checkpoint: its README, written from records alone. Every number in it was measured by a run."""

from __future__ import annotations

from collections.abc import Sequence

from tapline.models.checkpoint import Checkpoint
from tapline.training.data.corpus import ClassCount
from tapline.training.data.partition import PARTS
from tapline.training.evaluation import card
from tapline.training.evaluation.calibration import MOST_FLOWS
from tapline.training.evaluation.evaluation_record import Evaluation, EvaluationRecord
from tapline.training.evaluation.flow_measured import MIN_FLOWS, MIN_POOLED_FLOWS
from tapline.training.loop.config import TrainingConfig


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
    """The card of a flow checkpoint as Markdown; `notes` (data and citation, what it is not good for, commands) is
    put in as it is."""
    return card.joined_sections(
        _head(manifest, config, hardware, seconds),
        _evaluation(record) if record else card.NOT_EVALUATED,
        _int8(manifest),
        notes.strip(),
        _classes_learned(labels, background),
    )


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
            + card.by_points("", figures.macro_f1_by_packets, figures.calibration_error_by_packets)
            + f"\n\nEarly verdicts are worth giving after {figures.early_packets} payload packet(s).",
            "### By content bytes each way\n\n"
            + card.by_points("", figures.macro_f1_by_content_bytes, figures.calibration_error_by_content_bytes),
            "### By class\n\n" + card.by_class("class", {"captures": "captures", "flows": "support"}, figures.classes),
            "### Largest confusions\n\n" + card.confusions(("flows", "in captures"), figures.confusions),
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
    counted = f"over the classes with {MIN_FLOWS} flows or more in the fold"
    if settings.by == "corpus":
        how = (
            f"Each of {settings.folds} corpora was left out once: the model that is measured on it learned from the "
            "others alone. Flows that a model cannot tell from one that it learned from are not measured."
        )
        counted = f"of all flows together, over the classes with {MIN_POOLED_FLOWS} flows or more"
    text = (
        f"{how} Macro-F1 is {counted}; intervals are 95 % of "
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
    rows = [
        (
            "macro-F1",
            f"{figures.macro_f1:.3f} ({card.interval_text(figures.macro_f1_interval)})",
            f"{figures.macro_f1_trees:.3f} ({card.interval_text(figures.macro_f1_trees_interval)})",
        ),
        (
            "*unknown* labels, AUROC of the confidence",
            card.figure_text(figures.unknown_auroc),
            card.figure_text(figures.unknown_auroc_trees),
        ),
    ]
    return (
        f"{card.table(('', 'this model', 'tree ensemble'), rows)}\n\n"
        f"Gain in macro-F1 on the tree ensemble, 95 %: {card.interval_text(figures.gain_interval)}. {_ports(figures)}"
        f"Macro-F1 of the "
        f"forest {figures.macro_f1_forest:.3f}, of always the most frequent class {figures.macro_f1_majority:.3f}. "
        f"Weighted F1 {figures.weighted_f1:.3f}, accuracy over flows {figures.accuracy:.3f}. "
        f"Expected calibration error {figures.calibration_error:.3f} (15 bins; {fitted}; the checkpoint's is "
        f"{figures.temperature:.2f}).\n\n"
        f"Where the flows of a class in one capture weigh no more than {MOST_FLOWS} together: macro-F1 "
        f"{figures.macro_f1_capped:.3f}, tree ensemble {figures.macro_f1_capped_trees:.3f}, calibration error "
        f"{figures.calibration_error_capped:.3f}.\n\n"
        f"{_unknown(figures)}"
    )


def _ports(figures: Evaluation) -> str:
    if figures.macro_f1_ports is None or figures.gain_on_ports_interval is None:
        return ""
    return (
        f"A table of the server ports of the same captures has {figures.macro_f1_ports:.3f} (gain on it, 95 %: "
        f"{card.interval_text(figures.gain_on_ports_interval)}). "
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


def _folds(record: EvaluationRecord) -> str:
    names = ["captures", "flows", "classes", "macro-F1", "trees", "accuracy", "trees", "ECE", "AUROC", "trees"]
    folds, rows = record.figures.folds, []
    has_ports = any(fold.macro_f1_ports is not None for fold in folds)
    for fold in folds:
        name = fold.corpus or (f"{fold.fold} (settings chosen here)" if fold.tuned else str(fold.fold))
        if record.split:  # its part for validation counts as tuned: it calibrates, and is in no figure
            name = PARTS[1 + fold.fold]
        measures = (
            fold.macro_f1, fold.macro_f1_trees, fold.accuracy, fold.accuracy_trees, fold.calibration_error,
            fold.unknown_auroc, fold.unknown_auroc_trees, *([fold.macro_f1_ports] if has_ports else []),
        )  # fmt: skip
        rows.append((name, str(fold.captures), str(fold.flows), str(fold.classes), *map(card.figure_text, measures)))
    what = "part" if record.split else "fold" if record.settings.by == "capture" else "left out"
    return card.table([what, *names, *(["macro-F1 of ports"] if has_ports else [])], rows)


def _classes_learned(labels: Sequence[ClassCount], background: Sequence[ClassCount]) -> str:
    rows = [(count.label, str(count.captures), str(count.flows)) for count in labels]
    text = f"## What it learned from\n\n{card.table(('class', 'captures', 'flows'), rows)}"
    if background:
        names = ", ".join(sorted(count.label for count in background))
        flows = sum(count.flows for count in background)
        text += f"\n\nBackground, {flows} flows of {len(background)} labels that are too rare to learn: {names}."
    return text
