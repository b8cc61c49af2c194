"""The card of a trace checkpoint, written from records alone. Every number in it was measured by a run."""

from __future__ import annotations

from collections.abc import Iterable

from models.checkpoint import TracegramCheckpoint
from training.metrics import Interval
from training.traces.data import LOOK_ALIKE
from training.traces.runs import TraceRun
from training.traces.summary import FALSE_REJECTION, TraceEvaluation, VariantFigures

WORDS = {
    "main": "**this checkpoint's settings**",
    "trees-header": "trees on header fields",
    "trees-sizes": "trees on packet sizes",
    "no-time": "without time encoding",
    "scratch": "without pre-training",
    "tracegram": "the published encoder, pre-trained, on packet headers",
    "tracegram-scratch": "the published encoder, without pre-training",
    "frozen": "the embedding of payload lengths of flow-protocols as shipped",
}


def render_trace_card(manifest: TracegramCheckpoint, run: TraceRun, figures: TraceEvaluation | None, notes: str) -> str:
    """The card as Markdown; `notes` (data and citation, what it is not good for, commands) is put in as it is."""
    parts = [
        _head(manifest, run),
        _evaluation(figures) if figures else "Not evaluated: the confidence is not calibrated.",
        notes.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _head(manifest: TracegramCheckpoint, run: TraceRun) -> str:
    trace = manifest.trace
    window = f"windows of {trace.window_seconds:g} s" if trace.window_seconds else "whole captures"
    return (
        f"# {manifest.name} {manifest.version}\n\n"
        f"Tracegram, {manifest.network.queries} queries, {len(manifest.labels)} labels; {_encoder(manifest)} It takes "
        f"the flows of one {'network card' if trace.subject == 'mac' else trace.subject} in {window}.\n\n"
        f"Trained on {run.traces} traces with {run.flows} flows; phase 1 took {run.seconds / 60:.1f} minutes on "
        f"{run.hardware}."
    )


def _encoder(manifest: TracegramCheckpoint) -> str:
    """What reads a flow, and what of it."""
    if manifest.mm4flow is not None:
        network, reads = manifest.mm4flow.network, manifest.mm4flow.features
        content = f" and {reads.content_bytes} content bytes each way" if reads.content_bytes else ", no content"
        return (
            f"its flow encoder is an MM4flow of its own, {network.d_model}/{network.n_layer}/{network.n_head}/"
            f"{network.dim_ff} (width/layers/heads/feed-forward), trained with the rest. It reads the first "
            f"{reads.payload_lengths} payload lengths of a flow{content}; addresses and ports are not read."
        )
    features, sizes = manifest.features, manifest.network
    reads_of_packets = "headers and payload, own addresses masked" if features.payload else "headers only, no payload"
    return (
        f"its flow encoder is the published one, {sizes.emb_dim}/{sizes.dim}/{sizes.depth}/{sizes.heads} "
        f"(embedding/width/layers/heads). It reads the first {features.max_tokens} tokens of packet heads of a flow "
        f"({reads_of_packets}; addresses, ports and checksums are zero)."
    )


def _evaluation(figures: TraceEvaluation) -> str:
    return "\n\n".join(
        (
            "## How good it is",
            _method(figures),
            _variants(figures),
            "### By flows seen\n\n" + _prefixes(figures),
            _confidence(figures),
            _attribution(figures),
            "### By class\n\n" + _classes(figures),
            "### Confusions\n\n" + _mistakes(figures),
        )
    )


def _method(figures: TraceEvaluation) -> str:
    tuned = " and ".join(str(fold) for fold in figures.tuned)
    chosen = (
        f" Settings were chosen on fold {tuned}, which every figure below leaves out: {figures.traces} traces of "
        f"{figures.folds - len(figures.tuned)} folds remain."
        if figures.tuned
        else ""
    )
    text = (
        f"Cross-validated: {figures.folds} folds of whole captures, one trace for each capture, the captures of every "
        f"label spread evenly.{chosen} Macro-F1 is over the traces of these folds together; intervals are 95 % of a "
        "bootstrap over captures. The tree ensembles (500 balanced extremely randomised trees on summaries and counts "
        "of header fields, ports by class among them, or on payload lengths) learn from the same captures."
    )
    if not LOOK_ALIKE.keys() & {row.label for row in figures.classes}:
        return text
    return f"{text} *Merged*: pairs of devices that are the same hardware count as one."


def _variants(figures: TraceEvaluation) -> str:
    lines = [
        "| | captures of each device | traces | macro-F1 | merged | gain on the trees on header fields |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_variant(row) for row in figures.variants])


def _variant(row: VariantFigures) -> str:
    name, _, few = row.name.rpartition("-")
    kind, captures = (name, few) if few.isdigit() else (row.name, "all")
    gain = "" if kind == "trees-header" else f"{row.gain:+.3f} ({_range(row.gain_interval)})"
    score, merged = row.all_classes, row.merged
    return _row(
        (
            WORDS.get(kind, kind),
            captures,
            str(row.traces),
            f"{score.macro_f1:.3f} ({_range(score.interval)})",
            f"{merged.macro_f1:.3f} ({_range(merged.interval)})",
            gain,
        )
    )


def _prefixes(figures: TraceEvaluation) -> str:
    points = figures.prefixes
    return "\n".join(
        (
            _row(["flows", *(str(point.flows) if point.flows else "all" for point in points)]),
            _row(["---"] * (len(points) + 1)),
            _row(["macro-F1", *(f"{point.macro_f1:.3f}" for point in points)]),
            _row(["calibration error", *(f"{point.calibration_error:.3f}" for point in points)]),
        )
    )


def _confidence(figures: TraceEvaluation) -> str:
    early = figures.early
    text = (
        f"Calibration: temperature {figures.temperature:.2f}, expected calibration error "
        f"{figures.calibration_error:.3f}. An open window gets an early verdict from confidence {early.confidence:g} "
        f"and {early.min_flows} flows on: {early.share:.0%} of the traces did, and {early.accuracy:.1%} of these "
        f"verdicts were right.\n\n*Unknown*: the threshold {figures.threshold:.3f} is set to reject "
        f"{FALSE_REJECTION:.0%} of known traces and rejects {figures.known_rejected:.1%} of those measured"
    )
    if figures.unknown is None:
        return f"{text}. It was not measured on devices that were not learned."
    unknown = figures.unknown
    return (
        f"{text}, and {unknown.rejected:.1%} of {unknown.traces} traces of devices that a model trained without them "
        f"never saw ({', '.join(unknown.devices)}); AUROC of the confidence {unknown.auroc:.3f}."
    )


def _attribution(figures: TraceEvaluation) -> str:
    held = figures.faithfulness
    return (
        f"Attribution: without the {held.removed_share:.0%} of flows that it found most important the confidence in "
        f"the label falls by {held.top:.3f} on average, without as many random ones by {held.random:.3f}; difference "
        f"{held.difference:.3f} ({_range(held.difference_interval)}) over {held.traces} traces. Importance is "
        "correlation, not proof of cause."
    )


def _classes(figures: TraceEvaluation) -> str:
    rows = [
        _row((row.label, str(row.support), f"{row.precision:.2f}", f"{row.recall:.2f}", f"{row.f1:.2f}"))
        for row in figures.classes
    ]
    return "\n".join(["| device | traces | precision | recall | F1 |", "|---|---|---|---|---|", *rows])


def _mistakes(figures: TraceEvaluation) -> str:
    rows = [_row((mistake.label, mistake.called, str(mistake.traces))) for mistake in figures.mistakes]
    return "\n".join(["| is | was called | traces |", "|---|---|---|", *rows])


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
