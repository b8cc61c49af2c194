"""The card of a flow checkpoint: its README, written from records alone. Every number in it was measured by a run."""

from __future__ import annotations

from collections.abc import Sequence

from tapline.models.checkpoint import Checkpoint
from tapline.models.context import FlowContext
from tapline.training.data.corpus import ClassCount
from tapline.training.data.partition import PARTS
from tapline.training.data.split import BACKGROUND
from tapline.training.evaluation import card
from tapline.training.evaluation.calibration import MOST_FLOWS
from tapline.training.evaluation.confident_mistakes import CONFIDENT, MOST_CONFIDENT_MISTAKES
from tapline.training.evaluation.evaluation_record import Evaluation, EvaluationRecord, FoldFigures, WithoutPorts
from tapline.training.evaluation.flow_measured import MIN_FLOWS, MIN_POOLED_FLOWS, OWN, TREES, WITHOUT
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
        f"a flow, from {manifest.min_packets} payload packet up. {_context(manifest.context)}\n\n"
        f"Fine-tuned in {seconds / 60:.1f} minutes on {hardware}: {config.epochs} epochs of {config.draws} flows drawn "
        f"by class and capture, half of them cut to what an early verdict sees, seed {config.seed}."
    )


def _context(context: FlowContext | None) -> str:
    """What is read beside lengths and content, and how it is left out."""
    if context is None:
        return "Addresses and ports are not read."
    text = (
        "Addresses are not read. Its *context* is added to what the network says, after it: a label is barred on a "
        "transport that it never came with in training"
    )
    if context.ports is None:
        return f"{text}. Ports are not read."
    pairs = sum(len(held) for ports in context.ports.holders.values() for held in ports.values())
    return (
        f"{text}, and the server port adds {context.ports.weight:g} times the logarithm of how likely each label is "
        f"there, by the captures of {pairs} pairs of a port and a label, within a bound. "
        "`--ports off` (`?ports=off` in REST) leaves ports out of a verdict, which then has a temperature and a "
        "threshold of its own."
    )


def _evaluation(record: EvaluationRecord) -> str:
    figures = record.figures
    return "\n\n".join(
        (
            "## How good it is",
            _method(record),
            _headline(record),
            *([zeek] if (zeek := _beside_zeek(figures)) else []),
            _folds(record),
            "### By payload packets seen\n\n"
            + card.by_points("", figures.macro_f1_by_packets, figures.calibration_error_by_packets)
            + f"\n\nEarly verdicts are worth giving after {figures.early_packets} payload packet(s).",
            "### By content bytes each way\n\n"
            + card.by_points("", figures.macro_f1_by_content_bytes, figures.calibration_error_by_content_bytes),
            "### By class\n\n" + card.by_class("class", {"captures": "captures", "flows": "support"}, figures.classes),
            "### Largest confusions\n\n" + card.confusions(("flows", "in captures"), figures.confusions),
            _confident(figures),
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
        "captures; the trees *with context* read transport and ports too. *Ports off*: the transport is read, no "
        "port is. *Random ports*: every port is drawn from 1024 to 65535. *Forged ports*: each flow of TCP and UDP has "
        "the ports of another one, whose label is drawn first."
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
    own, *others = figures.models
    rows = [(own.name, f"{own.macro_f1:.3f} ({card.interval_text(own.interval)})", "")]
    rows += [
        (each.name, f"{each.macro_f1:.3f} ({card.interval_text(each.interval)})",
         f"{each.gain:+.3f} ({card.interval_text(each.gain_interval)})")
        for each in others
    ]  # fmt: skip
    return (
        f"{card.table(('', 'macro-F1', 'gain of this model'), rows)}\n\n"
        f"Weighted F1 {figures.weighted_f1:.3f}, accuracy over flows {figures.accuracy:.3f}. "
        f"Expected calibration error {figures.calibration_error:.3f} (15 bins; {fitted}; the checkpoint's is "
        f"{figures.temperature:.2f}).\n\n"
        f"Where the flows of a class in one capture weigh no more than {MOST_FLOWS} together: macro-F1 "
        f"{figures.macro_f1_capped:.3f}, tree ensemble {figures.macro_f1_capped_trees:.3f}, calibration error "
        f"{figures.calibration_error_capped:.3f}.\n\n"
        f"{_unknown(record)}"
    )


def _beside_zeek(figures: Evaluation) -> str:
    if not figures.beside_zeek:
        return ""
    rows = [(each.name, f"{each.macro_f1:.3f} ({card.interval_text(each.interval)})") for each in figures.beside_zeek]
    return (
        f"On the {figures.zeek_flows} flows of captures that Zeek's logs are there of, all together, classes with "
        f"{MIN_POOLED_FLOWS} flows or more; what Zeek calls no service, or one that is no label, is wrong:\n\n"
        f"{card.table(('', 'macro-F1'), rows)}"
    )


def _unknown(record: EvaluationRecord) -> str:
    figures = record.figures
    text = (
        f"*Unknown*: the threshold {figures.threshold:.3f} is set to reject {figures.false_rejection:.0%} of known "
        f"flows (a capture weighs no more than {MOST_FLOWS} flows of a class)."
    )
    if figures.unknown_rejected is None:
        return f"{text} It rejects {figures.known_rejected:.1%} of them. There was no rarer label to measure on."
    said: list[tuple[str, Evaluation | WithoutPorts]] = [(OWN, figures)]
    if figures.without_ports is not None:
        said.append((WITHOUT, figures.without_ports))
    rows = [
        (
            name,
            card.figure_text(each.unknown_auroc),
            card.share_text(each.unknown_rejected),
            card.share_text(each.unknown_confident),
            card.share_text(each.known_rejected),
            card.figure_text(each.calibration_error),
        )
        for name, each in said
    ]
    rows.append((TREES, card.figure_text(figures.unknown_auroc_trees), "-", "-", "-", "-"))
    head = (
        "labels never learned",
        "AUROC",
        "called unknown",
        f"named above {CONFIDENT}",
        "known called unknown",
        "ECE",
    )
    alone = " and with it the labels that no other corpus bears," if record.settings.by == "corpus" else ""
    return (
        f"{text} Half of the rare labels, another half in each fold, is background to train on; the other half,{alone} "
        f"which the fold's model never saw, is what is measured.\n\n{card.table(head, rows)}"
    )


def _confident(figures: Evaluation) -> str:
    title = f"### Mistakes with a confidence above {CONFIDENT}\n\n"
    if not figures.confident_mistakes:
        return f"{title}No pair of labels has more than {MOST_CONFIDENT_MISTAKES} of them."
    rows = [
        (m.label if m.learned else f"{m.label} (never learned)", m.called, str(m.count), str(m.captures),
         ", ".join(m.corpora))
        for m in figures.confident_mistakes
    ]  # fmt: skip
    head = ("is", "was called", "flows", "captures", "corpora")
    return f"{title}Every pair of labels with more than {MOST_CONFIDENT_MISTAKES} of them.\n\n{card.table(head, rows)}"


def _folds(record: EvaluationRecord) -> str:
    """Macro-F1 of each fold beside its rivals, then what its confidence is worth."""
    folds = record.figures.folds
    what = "part" if record.split else "fold" if record.settings.by == "capture" else "left out"
    f1 = ["ports off", "random ports", "forged ports", "port table", "gain on it", "trees with context", "trees"]
    sizes, scores = ["captures", "flows", "classes"], ["macro-F1", *f1, "accuracy"]
    worth = ["ECE", "ports off", "flows never learned", "AUROC", "ports off", "called unknown", "ports off",
             f"named above {CONFIDENT}", "ports off"]  # fmt: skip
    names = [_fold_name(record, fold) for fold in folds]
    return "\n\n".join(
        (
            card.table([what, *sizes, *scores], map(_fold_scores, names, folds)),
            card.table([what, *worth], map(_fold_worth, names, folds)),
        )
    )


def _fold_name(record: EvaluationRecord, fold: FoldFigures) -> str:
    if record.split:  # its part for validation counts as tuned: it calibrates, and is in no figure
        return PARTS[1 + fold.fold]
    return fold.corpus or (f"{fold.fold} (settings chosen here)" if fold.tuned else str(fold.fold))


def _fold_scores(name: str, fold: FoldFigures) -> list[str]:
    without, span, gain = fold.without_ports, fold.macro_f1_interval, fold.gain_on_ports_interval
    macro = f"{card.figure_text(fold.macro_f1)}{f' ({card.interval_text(span)})' if span else ''}"
    before = (without.macro_f1 if without else None, fold.macro_f1_random_ports, fold.macro_f1_forged_ports)
    return [
        name, str(fold.captures), str(fold.flows), str(fold.classes), macro,
        *map(card.figure_text, (*before, fold.macro_f1_ports)), card.interval_text(gain) if gain else "-",
        *map(card.figure_text, (fold.macro_f1_context_trees, fold.macro_f1_trees, fold.accuracy)),
    ]  # fmt: skip


def _fold_worth(name: str, fold: FoldFigures) -> list[str]:
    off = fold.without_ports
    return [
        name, card.figure_text(fold.calibration_error), card.figure_text(off.calibration_error if off else None),
        str(fold.unknown_flows),
        card.figure_text(fold.unknown_auroc), card.figure_text(off.unknown_auroc if off else None),
        card.share_text(fold.unknown_rejected), card.share_text(off.unknown_rejected if off else None),
        card.share_text(fold.unknown_confident), card.share_text(off.unknown_confident if off else None),
    ]  # fmt: skip


def _classes_learned(labels: Sequence[ClassCount], background: Sequence[ClassCount]) -> str:
    rows = [(count.label, str(count.captures), str(count.flows)) for count in labels]
    text = f"## What it learned from\n\n{card.table(('class', 'captures', 'flows'), rows)}"
    if rare := [count for count in background if count.label != BACKGROUND]:
        names, flows = ", ".join(sorted(count.label for count in rare)), sum(count.flows for count in rare)
        text += f"\n\nBackground, {flows} flows of {len(rare)} labels that are too rare to learn: {names}."
    if flows := sum(count.flows for count in background if count.label == BACKGROUND):
        text += (
            f"\n\nBackground, {flows} flows that bear the label `{BACKGROUND}`: looked at, and none of these classes."
        )
    return text
