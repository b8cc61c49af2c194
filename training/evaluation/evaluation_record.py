"""What an evaluation found, as `evaluation.json` and the manifest hold it, of flows and of traces; and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tapline.training.evaluation.measured import ConfidentMistake, Model
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import EVALUATION
from tapline.training.loop.scores import ClassScore, Interval


class Score(msgspec.Struct, frozen=True):
    """Macro-F1 with its 95 % bootstrap interval over captures."""

    macro_f1: float
    interval: Interval


class EvaluationSettings(msgspec.Struct, frozen=True):
    """How a configuration is measured. Folds in `tuned` served to choose settings and are left out of the headline.

    `int8` measures the quantised model of each fold too. `by` what is left out of a fold's training: some captures, or
    all of a corpus; then there are as many folds as corpora that are measured.
    """

    folds: int = 5
    seed: int = 0
    tuned: tuple[int, ...] = ()
    int8: bool = False
    by: Literal["capture", "corpus"] = "capture"


class Confusion(msgspec.Struct, frozen=True):
    """So many flows of `label` in so many captures were called `called`."""

    label: str
    called: str
    flows: int
    captures: int


class WithoutPorts(msgspec.Struct, frozen=True):
    """What the same models say by content, lengths and transport alone, with a calibration of its own: `temperature`
    and `threshold` are for the verdicts without ports of the checkpoint, or those that a fold was measured with. The
    rest as in `Evaluation`."""

    macro_f1: float | None
    macro_f1_interval: Interval | None
    calibration_error: float
    known_rejected: float
    unknown_auroc: float | None
    unknown_rejected: float | None
    unknown_confident: float | None
    temperature: float
    threshold: float


class FoldFigures(msgspec.Struct, frozen=True):
    """One fold: sizes, the model, the trees. `tuned` folds served to choose settings.

    Macro-F1 is None in a fold without a class of `MIN_FLOWS` flows, AUROC where there is no unknown flow. `corpus` is
    the one that was left out, "" where captures were; then macro-F1 has an interval, and so has what it gains on the
    port table. `unknown_flows` are those of labels never learned; `unknown_confident` the share of them that is named
    with more confidence than `confident_mistakes.CONFIDENT`. What is about ports is None where they are not read.
    """

    fold: int
    tuned: bool
    captures: int
    flows: int
    classes: int
    macro_f1: float | None
    macro_f1_trees: float | None
    accuracy: float
    accuracy_trees: float
    calibration_error: float
    unknown_auroc: float | None
    unknown_auroc_trees: float | None
    macro_f1_ports: float | None = None
    corpus: str = ""
    macro_f1_interval: Interval | None = None
    gain_on_ports_interval: Interval | None = None
    macro_f1_context_trees: float | None = None
    macro_f1_random_ports: float | None = None
    macro_f1_forged_ports: float | None = None
    unknown_flows: int = 0
    unknown_rejected: float | None = None
    unknown_confident: float | None = None
    without_ports: WithoutPorts | None = None


class Evaluation(msgspec.Struct, frozen=True):
    """Everything measured of flows on captures kept from training, over the folds that chose no setting.

    `macro_f1` is the mean over folds, its interval a bootstrap over the captures of each fold; where corpora were left
    out it is of all flows together, of the classes with `MIN_POOLED_FLOWS`. `..._by_packets`: after so many payload
    packets, and `all`; `..._by_content_bytes`: with so many content bytes each way; `early_packets`: see the function.
    The trees read lengths and bytes, the forest flow statistics, `ports` is a table of server ports; `majority` names
    the most frequent class whatever comes. Each fold is calibrated with the temperature fitted on the other folds;
    `temperature` and `threshold` are those of all folds together, for the checkpoint. `capped`: where the flows of a
    class in one capture weigh no more than `calibration.MOST_FLOWS` together. `unknown_confident`: the share of flows
    of labels that were never learned that are named with more confidence than `confident_mistakes.CONFIDENT`.

    All of that is with context, ports included; `without_ports` is without, None where ports are not read. `models` are
    this model and everything beside it on the same flows, with other ports too; `beside_zeek` the same of the
    `zeek_flows` of captures that Zeek's logs are there of, all folds together, empty without logs.
    `confident_mistakes`: every pair of labels with more than `MOST_CONFIDENT_MISTAKES`.
    """

    folds: list[FoldFigures]
    macro_f1: float
    macro_f1_interval: Interval
    macro_f1_trees: float
    macro_f1_trees_interval: Interval
    gain_interval: Interval
    macro_f1_forest: float
    macro_f1_majority: float
    weighted_f1: float
    macro_f1_capped: float
    macro_f1_capped_trees: float
    calibration_error_capped: float
    accuracy: float
    calibration_error: float
    unknown_auroc: float | None
    unknown_auroc_trees: float | None
    unknown_rejected: float | None
    known_rejected: float
    macro_f1_by_packets: dict[str, float]
    calibration_error_by_packets: dict[str, float]
    macro_f1_by_content_bytes: dict[str, float]
    calibration_error_by_content_bytes: dict[str, float]
    early_packets: int
    false_rejection: float
    classes: list[ClassScore]
    confusions: list[Confusion]
    temperature: float
    threshold: float
    macro_f1_int8: float | None = None
    macro_f1_ports: float | None = None
    gain_on_ports_interval: Interval | None = None
    unknown_confident: float | None = None
    without_ports: WithoutPorts | None = None
    models: list[Model] = []
    beside_zeek: list[Model] = []
    zeek_flows: int = 0
    confident_mistakes: list[ConfidentMistake] = []


class EvaluationRecord(msgspec.Struct, frozen=True):
    """An evaluation with its settings and cost; `split` is the name of the split it was measured on, if on one."""

    settings: EvaluationSettings
    figures: Evaluation
    seconds: float
    split: str = ""


class VariantFigures(msgspec.Struct, frozen=True):
    """One variant over the reported folds that it was measured on together: all classes, look-alike ones merged,
    accuracy, and its gain over the tree ensemble on header fields that learned from as many captures."""

    name: str
    folds: list[int]
    traces: int
    all_classes: Score
    merged: Score
    accuracy: float
    gain: float
    gain_interval: Interval


class PrefixFigures(msgspec.Struct, frozen=True):
    """After so many flows of a trace (0: all): macro-F1, calibration error and mean confidence."""

    flows: int
    macro_f1: float
    calibration_error: float
    confidence: float = 0.0


class UnknownFigures(msgspec.Struct, frozen=True):
    """Labels that were not learned, `devices`: AUROC of the confidence, and the share that the threshold rejects."""

    devices: list[str]
    traces: int
    auroc: float
    rejected: float


class EarlyFigures(msgspec.Struct, frozen=True):
    """The early rule: from this confidence on, with so many flows; on held traces the share that gets an early verdict,
    and how often it is right; None where none gets one."""

    confidence: float
    min_flows: int
    share: float
    accuracy: float | None


class Confused(msgspec.Struct, frozen=True):
    """So many traces of `label` were called `called`."""

    label: str
    called: str
    traces: int


class Faithfulness(msgspec.Struct, frozen=True):
    """Mean fall of the confidence over traces without their most important flows, without random ones, and of the
    difference, with a 95 % bootstrap interval."""

    traces: int
    removed_share: float
    top: float
    random: float
    difference: float
    difference_interval: Interval


class BackgroundShares(msgspec.Struct, frozen=True):
    """Of so many traces, by models that learned other captures; a trace that several folds measured has as many
    `verdicts`. Shares are of verdicts: `rejected` as unknown, `confident` with a confidence above that of
    `trace_figures.CONFIDENT`. `auroc` is that of the confidence against known traces."""

    traces: int
    verdicts: int
    rejected: float
    confident: float
    auroc: float


class BackgroundFigures(msgspec.Struct, frozen=True):
    """Verdicts on the background of so many captures: of all traces, and of those of `trace_figures.LONG_FLOWS`
    flows or more beside known ones as long; None where one of the two has none."""

    captures: int
    all: BackgroundShares
    long: BackgroundShares | None


class TraceEvaluation(msgspec.Struct, frozen=True):
    """Everything measured of traces on captures kept from training; the folds in `tuned` served to choose settings and
    are left out of every figure but temperature and thresholds. `unknown` and `faithfulness` are None where no trace
    shows them, `background` where none was learned. `by_day`: all captures of a day were in one
    fold. `test`: captures whose names begin so were measured, and all others learned, in the place of folds."""

    main: str
    folds: int
    tuned: list[int]
    traces: int
    variants: list[VariantFigures]
    prefixes: list[PrefixFigures]
    classes: list[ClassScore]
    mistakes: list[Confused]
    calibration_error: float
    temperature: float
    threshold: float
    known_rejected: float
    unknown: UnknownFigures | None
    early: EarlyFigures
    faithfulness: Faithfulness | None
    background: BackgroundFigures | None = None
    by_day: bool = False
    test: str = ""


def read_evaluation(directory: Path) -> EvaluationRecord | None:
    """The evaluation of a run of flows, None where there is none.

    Raises:
        TrainingError: it is damaged, or of another version.
    """
    path = directory / EVALUATION
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvaluationRecord)
    except msgspec.DecodeError as error:
        raise TrainingError(f"{path}: {error}: run `evaluate` again") from None


def read_trace_evaluation(directory: Path) -> TraceEvaluation:
    """The figures that evaluate-traces wrote.

    Raises:
        TrainingError: they are missing or damaged.
    """
    try:
        return msgspec.json.decode((directory / EVALUATION).read_bytes(), type=TraceEvaluation)
    except OSError as error:
        raise TrainingError(f"{directory}: no readable {EVALUATION} ({error.strerror}): evaluate first") from None
    except msgspec.DecodeError as error:
        raise TrainingError(f"{directory / EVALUATION}: {error}: evaluate again") from None
