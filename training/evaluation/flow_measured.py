"""From the outcomes of folds of flows to what was measured of the model and of everything beside it, calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tapline.training.evaluation.calibration import Calibrated, calibrate, capped_weights, label_shares
from tapline.training.evaluation.evaluation_record import EvaluationSettings
from tapline.training.evaluation.measured import Measured
from tapline.training.evaluation.outcomes import FlowOutcome, Logits
from tapline.training.loop.config import TrainingError
from tapline.training.loop.scores import Floats, Ints

MIN_FLOWS = 5
"""Macro-F1 counts the classes that a fold holds at least so many flows of."""

MIN_POOLED_FLOWS = 10
"""Where corpora were left out, macro-F1 of all flows together counts the classes with at least so many."""

FALSE_REJECTION = 0.05
"""Share of known flows that the unknown rule may reject."""

TREES, FOREST, PORTS, CONTEXT_TREES, MAJORITY, INT8 = (
    "trees on lengths and bytes",
    "forest on flow statistics",
    "table of server ports",
    "trees with context",
    "always the most frequent",
    "the same model, int8",
)
ZEEK = "Zeek's service"
OWN, WITHOUT = "this model", "this model, ports off"
RANDOM_PORTS, FORGED_PORTS = "random ports", "forged ports"
"""What is added to the name of a model that is measured on flows with ports of `other_ports`."""


def calibrated_elsewhere(
    outcomes: Sequence[FlowOutcome], n_label: int, false_rejection: float = FALSE_REJECTION
) -> dict[int, Calibrated]:
    """For each fold what is fitted on the other ones: temperature 1 and no threshold where there are none."""
    others = {outcome.fold: [other for other in outcomes if other is not outcome] for outcome in outcomes}
    return {
        fold: fitted(rest, n_label, false_rejection) if rest else Calibrated(1.0, 0.0) for fold, rest in others.items()
    }


def fitted(outcomes: Sequence[FlowOutcome], n_label: int, false_rejection: float = FALSE_REJECTION) -> Calibrated:
    """Temperature and threshold from flows that the models of these folds were not trained on."""
    truth = np.concatenate([outcome.truth for outcome in outcomes])
    weights = capped_weights([capture for outcome in outcomes for capture in outcome.captures], truth)
    return calibrate(np.concatenate([o.logits for o in outcomes]), truth, weights, n_label, false_rejection)


def ports_off(outcomes: Sequence[FlowOutcome]) -> list[FlowOutcome]:
    """The outcomes of the same models without ports, empty where one of them has none."""
    if not all(len(o.without_ports) == len(o.truth) for o in outcomes):
        return []
    return [replace(o, logits=o.without_ports, unknown_logits=o.unknown_without_ports) for o in outcomes]


def measured_flows(
    outcomes: Sequence[FlowOutcome],
    labels: Sequence[str],
    elsewhere: Mapping[int, Calibrated],
    threshold: float,
    logits: Sequence[Logits] | None = None,
    *,
    pooled: bool = False,
) -> Measured:
    """What was said of the flows of several folds, each with its temperature; `logits` in place of those of whole flows
    for each fold. `pooled`: macro-F1 is of all flows together, not the mean over folds."""

    def shares(outcome: FlowOutcome, logits: Logits) -> Floats:
        return label_shares(logits, elsewhere[outcome.fold].temperature, len(labels))

    return Measured(
        title="Flow classifier",
        unit="flow",
        labels=labels,
        truth=np.concatenate([o.truth for o in outcomes]),
        probabilities=np.concatenate(
            [shares(*pair) for pair in zip(outcomes, logits or [o.logits for o in outcomes], strict=True)]
        ),
        captures=[capture for o in outcomes for capture in o.captures],
        folds=None if pooled else np.concatenate([np.full(len(o.truth), o.fold) for o in outcomes]),
        min_support=MIN_POOLED_FLOWS if pooled else MIN_FLOWS,
        threshold=threshold,
        unknown_confidence=np.concatenate([shares(o, o.unknown_logits).max(axis=1) for o in outcomes]),
        rivals=_rivals(outcomes, len(labels)),
        ids=np.concatenate([o.ids for o in outcomes]),
    )


def _rivals(outcomes: Sequence[FlowOutcome], n_label: int) -> dict[str, Ints]:
    """The classes that everything beside the model predicts, int64 [n] each, by name, of what all folds measured."""
    said = {
        WITHOUT: [_named(o.without_ports, n_label) for o in outcomes],
        f"{OWN}, {RANDOM_PORTS}": [_named(o.random_ports, n_label) for o in outcomes],
        f"{OWN}, {FORGED_PORTS}": [_named(o.forged_ports, n_label) for o in outcomes],
        PORTS: [o.ports for o in outcomes],
        f"{PORTS}, {RANDOM_PORTS}": [o.ports_random for o in outcomes],
        f"{PORTS}, {FORGED_PORTS}": [o.ports_forged for o in outcomes],
        CONTEXT_TREES: [o.context_trees for o in outcomes],
        f"{CONTEXT_TREES}, {RANDOM_PORTS}": [o.context_trees_random for o in outcomes],
        f"{CONTEXT_TREES}, {FORGED_PORTS}": [o.context_trees_forged for o in outcomes],
        TREES: [o.trees for o in outcomes],
        FOREST: [o.forest for o in outcomes],
        MAJORITY: [np.full_like(o.truth, o.majority) for o in outcomes],
        INT8: [o.int8 for o in outcomes],
    }
    flows = [len(o.truth) for o in outcomes]
    return {name: np.concatenate(each) for name, each in said.items() if [len(part) for part in each] == flows}


def _named(logits: Logits, n_label: int) -> Ints:
    """The label of each row, int64 [n]."""
    return np.asarray(logits[:, :n_label].argmax(axis=1) if len(logits) else [], np.int64)


def reported_folds(outcomes: Sequence[FlowOutcome], n_label: int, settings: EvaluationSettings) -> list[FlowOutcome]:
    """The folds that make the headline: not tuned on, and with a class to measure; corpora are measured together.

    Raises:
        TrainingError: there is none.
    """
    pooled = is_pooled(settings)
    counted = [o for o in outcomes if o.fold not in settings.tuned and (pooled or classes_of(o.truth, n_label))]
    if not counted or (
        pooled and not classes_of(np.concatenate([o.truth for o in counted]), n_label, MIN_POOLED_FLOWS)
    ):
        raise TrainingError(
            f"no fold to report holds a class with {MIN_FLOWS} flows: take fewer folds (--folds) or label more captures"
        )
    return counted


def is_pooled(settings: EvaluationSettings) -> bool:
    """Whether figures are of all flows together: corpora differ too much in what they hold for a mean over them."""
    return settings.by == "corpus"


def classes_of(truth: Ints, n_label: int, least: int = MIN_FLOWS) -> int:
    """How many classes are counted."""
    return int((np.bincount(truth, minlength=n_label) >= least).sum())
