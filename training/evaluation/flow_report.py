"""From the outcomes of a flow model's evaluation to its report. Figures belong to `measured`, the look to `page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tapline.training.evaluation.evaluation_record import EvaluationRecord
from tapline.training.evaluation.flow_cross_validation import FoldOutcome
from tapline.training.evaluation.flow_figures import EARLY_F1_LOSS, MIN_FLOWS, has_int8, judge_all, reported_folds
from tapline.training.evaluation.flow_rivals import TREES
from tapline.training.evaluation.measured import Curve, Measured
from tapline.training.evaluation.page import write_report
from tapline.training.flows.flow_record import Run

_EARLY = (
    "Every flow cut to its first packets, content included. Early verdicts are worth giving after {}: macro-F1 within "
    "{} of the whole flow's."
)


def write_flow_report(directory: Path, run: Run, outcomes: Sequence[FoldOutcome], record: EvaluationRecord) -> None:
    """Write `report.html` and `report.json` into a run directory."""
    write_report(directory, measured_flows(run, outcomes, record))


def measured_flows(run: Run, outcomes: Sequence[FoldOutcome], record: EvaluationRecord) -> Measured:
    """What was measured of a run, the folds that chose no setting together."""
    labels = sorted(count.label for count in run.labels)
    folds = reported_folds(judge_all(outcomes, len(labels)), len(labels), record.settings)
    figures = record.figures
    out = [fold.outcome for fold in folds]
    return Measured(
        title="Flow classifier",
        unit="flow",
        labels=labels,
        truth=np.concatenate([o.truth for o in out]),
        probabilities=np.concatenate([fold.shares for fold in folds]),
        captures=[capture for o in out for capture in o.captures],
        folds=np.concatenate([np.full(len(o.truth), o.fold) for o in out]),
        min_support=MIN_FLOWS,
        threshold=figures.threshold,
        unknown_confidence=np.concatenate([fold.unknown_confidence for fold in folds]),
        rivals={
            "trees on lengths and bytes": np.concatenate([o.trees for o in out]),
            "forest on flow statistics": np.concatenate([o.forest for o in out]),
            "always the most frequent": np.concatenate([np.full(len(o.truth), o.majority) for o in out]),
            **({"the same model, int8": np.concatenate([o.int8 for o in out])} if has_int8(folds) else {}),
        },
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
        facts=_facts(run, record),
        notes=_notes(record),
    )  # fmt: skip


def _curve(title: str, axis: str, f1: Mapping[str, float], error: Mapping[str, float], note: str) -> Curve:
    return Curve(title, axis, list(f1), list(f1.values()), list(error.values()), note=note)


def _facts(run: Run, record: EvaluationRecord) -> dict[str, str]:
    network = run.network
    size = f"{network.d_model}/{network.n_layer}/{network.n_head}/{network.dim_ff} (width/layers/heads/feed-forward)"
    how = f"cross-validation, {record.settings.folds} folds of captures"
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
    calibrated = "Each fold is calibrated with the temperature that fits the other folds."
    if record.split:
        macro = f"Macro-F1 is the mean F1 of the classes with {MIN_FLOWS} flows or more; the other figures are of all."
        calibrated = "The temperature is the one that fits the part for validation."
    return [
        macro,
        f"{calibrated} The threshold of unknown is set so that {record.figures.false_rejection:.0%} of known flows are "
        "rejected, a capture weighing no more than 20 flows of a class.",
        f"Rivals learn from the same flows: {TREES} extremely randomised trees on the first 16 lengths and 48 bytes "
        f"each way, a random forest of {TREES} on statistics of the lengths, and the most frequent class.",
    ]
