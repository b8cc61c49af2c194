"""What the reports of flow and trace models show. Figures belong to `measured`, the look to `page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tapline.training.data.labelled_traces import TraceCorpus, look_alike
from tapline.training.evaluation.calibration import Calibrated
from tapline.training.evaluation.evaluation_record import EvaluationRecord, TraceEvaluation
from tapline.training.evaluation.flow_figures import EARLY_F1_LOSS
from tapline.training.evaluation.flow_measured import (
    MIN_FLOWS,
    MIN_POOLED_FLOWS,
    calibrated_elsewhere,
    is_pooled,
    measured_flows,
    reported_folds,
)
from tapline.training.evaluation.measured import Curve, Measured
from tapline.training.evaluation.outcomes import FlowOutcome, TraceOutcome
from tapline.training.evaluation.rivals import FLOW_TREES
from tapline.training.evaluation.trace_figures import measured_traces
from tapline.training.flows.flow_record import Run

_EARLY = (
    "Every flow cut to its first packets, content included. Early verdicts are worth giving after {}: macro-F1 within "
    "{} of the whole flow's."
)


def flows_report(run: Run, outcomes: Sequence[FlowOutcome], record: EvaluationRecord) -> Measured:
    """What was measured of a run of flows, the folds that chose no setting together."""
    labels, figures = sorted(count.label for count in run.labels), record.figures
    reported = reported_folds(outcomes, len(labels), record.settings)
    return replace(
        measured_flows(
            reported, labels, calibrated_elsewhere(outcomes, len(labels)), figures.threshold,
            pooled=is_pooled(record.settings),
        ),
        curves=[
            _curve(
                "How early?", "payload packets seen", figures.macro_f1_by_packets,
                figures.calibration_error_by_packets, _EARLY.format(figures.early_packets, EARLY_F1_LOSS),
            ),
            _curve(
                "How much content?", "content bytes each way", figures.macro_f1_by_content_bytes,
                figures.calibration_error_by_content_bytes, "All payload lengths, and so many content bytes.",
            ),
        ],
        confident_mistakes=figures.confident_mistakes,
        facts=_facts(run, record),
        notes=_notes(record),
    )  # fmt: skip


def traces_report(
    corpus: TraceCorpus, outcomes: Mapping[str, Mapping[int, TraceOutcome]], figures: TraceEvaluation
) -> Measured:
    """What was measured of traces, the folds that chose no setting together, beside the variants that have them all."""
    reported = [fold for fold in range(figures.folds) if fold not in figures.tuned]
    final = Calibrated(figures.temperature, figures.threshold)

    def measured(name: str) -> Measured:
        return measured_traces(corpus, [outcomes[name][fold] for fold in reported], final)

    curve = Curve(
        "By flows seen",
        "flows",
        [str(point.flows or "all") for point in figures.prefixes],
        [point.macro_f1 for point in figures.prefixes],
        [point.calibration_error for point in figures.prefixes],
        confidence=[point.confidence for point in figures.prefixes],
    )
    rivals = [row.name for row in figures.variants if row.folds == reported and row.name != figures.main]
    return replace(
        measured(figures.main),
        title="Devices by their traces" if look_alike(corpus.labels) else "Labels of traces",
        rivals={name: measured(name).predicted for name in rivals},
        curves=[curve],
        notes=["Folds that served to choose settings are left out of every figure."] if figures.tuned else [],
    )


def _curve(title: str, axis: str, f1: Mapping[str, float], error: Mapping[str, float], note: str) -> Curve:
    return Curve(title, axis, list(f1), list(f1.values()), list(error.values()), note=note)


def _facts(run: Run, record: EvaluationRecord) -> dict[str, str]:
    network = run.network
    size = f"{network.d_model}/{network.n_layer}/{network.n_head}/{network.dim_ff} (width/layers/heads/feed-forward)"
    what = "folds of captures" if record.settings.by == "capture" else "corpora, each left out once"
    how = f"cross-validation, {record.settings.folds} {what}"
    if tuned := ", ".join(str(fold) for fold in record.settings.tuned):
        how += f"; settings were chosen on fold {tuned}, which is left out here"
    if record.split:
        how = f"the part for the test of the split {record.split}"
    return {
        "network": size,
        "reads": f"{run.config.features.payload_lengths} payload lengths, "
        f"{run.config.features.content_bytes} content bytes each way",
        "trained": f"{run.config.epochs} epochs of {run.config.draws} flows on {run.hardware}, seed {run.config.seed}; "
        f"encoders {'pre-trained' if run.encoders else 'from scratch'}",
        "measured by": how,
        "features": ", ".join(f"{name} ({digest[:12]})" for name, digest in run.features.items()),
    }


def _notes(record: EvaluationRecord) -> list[str]:
    macro = (
        f"Macro-F1 is the mean over folds of the mean F1 of the classes with {MIN_FLOWS} flows or more in the fold; "
        "the other figures are of all flows together. No capture is on both sides."
    )
    if is_pooled(record.settings):
        macro = (
            f"Macro-F1 is the mean F1 of the classes with {MIN_POOLED_FLOWS} flows or more, of all flows together. No "
            "corpus is on both sides, and no flow that has its like on the other."
        )
    calibrated = "Each fold is calibrated with the temperature that fits the other folds."
    if record.split:
        macro = f"Macro-F1 is the mean F1 of the classes with {MIN_FLOWS} flows or more; the other figures are of all."
        calibrated = "The temperature is the one that fits the part for validation."
    corpora = [
        f"Without {fold.corpus}: macro-F1 {fold.macro_f1:.3f}, ports {fold.macro_f1_ports or 0:.3f}, "
        f"trees {fold.macro_f1_trees or 0:.3f}; {fold.flows} flows of {fold.captures} captures."
        for fold in record.figures.folds
        if fold.corpus and fold.macro_f1 is not None
    ]
    return [
        *corpora,
        macro,
        f"{calibrated} The threshold of unknown is set so that {record.figures.false_rejection:.0%} of known flows are "
        "rejected, a capture weighing no more than 20 flows of a class.",
        f"Rivals learn from the same flows: {FLOW_TREES} extremely randomised trees on the first 16 lengths and 48 "
        "bytes each way, the same trees with IP protocol and ports, a random forest of "
        f"{FLOW_TREES} on statistics of the lengths, a table of server ports, and the most frequent class. Random "
        "ports are drawn for every flow, forged ones are those of a flow of another label, drawn by label.",
    ]
