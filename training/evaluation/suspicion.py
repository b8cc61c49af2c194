"""How well a trace model tells what is of a malicious kind, where that can be believed: every source of benign traffic
is left out of training once, and so are families and laboratories.

Malware and benign traffic come from different laboratories, systems and years, so that one model could tell the two
apart by where they were recorded. Of a source that was never learned it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from sklearn.metrics import f1_score

from tapline.models.tracegram import TraceNetwork
from tapline.models.verdict import SUSPICION_DIGITS
from tapline.training.data.labelled_traces import LabelledTrace, TraceCorpus, day_folds, name_of
from tapline.training.evaluation.calibration import label_shares
from tapline.training.evaluation.rivals import fit_predict
from tapline.training.evaluation.trace_figures import EARLY_MIN_FLOWS
from tapline.training.loop.config import TrainingError
from tapline.training.loop.scores import Floats, Ints, auroc
from tapline.training.loop.trainer import Report
from tapline.training.traces.aggregate import score_traces
from tapline.training.traces.features import TraceFeatures, context_features
from tapline.training.traces.trace_config import TraceTrainingConfig
from tapline.training.traces.trace_runs import fit_context

SUSPICION = "suspicion.json"
"""The file of an evaluation that holds the figures."""

FALSE_ALARMS = 0.005
"""Share of the benign traces of a source that may be called suspicious: it sets the threshold."""

FOLDS = 5
PREFIXES = (1, 2, 4, 8, 16, 32)
"""Flows of a trace after which it is asked whether it is called suspicious already."""

Sources = Mapping[str, Sequence[LabelledTrace]]
"""Traces of benign traffic, by the name of what they were extracted into."""


class SourceFigures(msgspec.Struct, frozen=True):
    """A source of benign traffic, by a model that learned none of it.

    `alarms`: share of its traces called suspicious at the threshold that the worst of the other sources sets;
    `caught`: share of the traces of malware never learned that this model calls so; `auroc` of one against the other.
    `early_alarms`: share of its traces called so at the end or after any of `PREFIXES` from `EARLY_MIN_FLOWS` on, as
    open windows are.
    `..._trees`: of trees on header fields, which learned the same.
    """

    source: str
    traces: int
    alarms: float
    caught: float
    auroc: float
    alarms_trees: float
    caught_trees: float
    auroc_trees: float
    early_alarms: float | None = None


class FamilyFigures(msgspec.Struct, frozen=True):
    """A label that was left out of training, and the share of its traces called suspicious all the same."""

    label: str
    traces: int
    caught: float


class LaboratoryFigures(msgspec.Struct, frozen=True):
    """Captures of one laboratory, malicious and benign, by a model that learned none of either.

    Macro-F1 is over the two kinds, suspicious or not.
    """

    laboratory: str
    malicious: int
    benign: int
    macro_f1: float
    macro_f1_trees: float


class NamelessFigures(msgspec.Struct, frozen=True):
    """The confidence below which a suspicious trace bears no label, and the share of traces below it.

    `threshold` is where labels that were left out one by one are told best from the held-out traces of learned ones, by
    the difference of their shares, `left_out` and `learned` (Youden, Cancer 3, 1950); `never_learned` chose nothing.
    """

    threshold: float
    left_out: float
    learned: float
    never_learned: float


class SuspicionFigures(msgspec.Struct, frozen=True):
    """`never_learned` are labels of too few captures to be learned; `families` those that were left out one by one.

    `learned`: share of the held-out traces of learned labels that is called suspicious; `by_flows`: the same after so
    many flows; `median_seconds`: of those called suspicious, from their first flow to the one after which they are,
    None where none is.
    """

    threshold: float
    false_alarms: float
    sources: list[SourceFigures]
    never_learned: list[FamilyFigures]
    families: list[FamilyFigures]
    laboratories: list[LaboratoryFigures]
    learned: float
    by_flows: dict[str, float]
    median_seconds: float | None
    nameless: NamelessFigures | None = None


@dataclass(frozen=True)
class _Said:
    """What a model says of n traces: how suspicious each is, and the confidence in its likeliest label, float64 [n]."""

    suspicion: Floats
    confidence: Floats


@dataclass(frozen=True)
class _Scores:
    """What was said of what was not learned: benign traces of the source, malware never learned, held-out traces of
    learned labels whole and after so many flows; `held` their rows. `early`: the highest suspicion of the benign traces
    at the end or before, float64."""

    benign: Floats
    early: Floats
    strange: _Said
    learned: _Said
    prefixes: dict[int, Floats]
    held: Ints


@dataclass(frozen=True)
class SuspicionTask:
    """What is measured: a corpus whose `rare` traces are malware never learned, benign sources, the settings of the
    run, the temperature of its confidence, and beginnings of names of captures that are of one laboratory each."""

    corpus: TraceCorpus
    sources: Sources
    config: TraceTrainingConfig
    temperature: float
    laboratories: Sequence[str] = ()


def read_suspicion(directory: Path) -> SuspicionFigures | None:
    """The figures in the directory of an evaluation, None where suspicion was not measured.

    Raises:
        TrainingError: they are damaged.
    """
    path = directory / SUSPICION
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=SuspicionFigures)
    except msgspec.DecodeError as error:
        raise TrainingError(f"{path}: {error}: evaluate again") from None


def measure_suspicion(task: SuspicionTask, report: Report = lambda _: None) -> SuspicionFigures:
    """Train once for each source, label and laboratory that is left out, and say what the models call suspicious.

    Raises:
        TrainingError: fewer than two sources, no malware that was never learned or some of it among the sources, an
            encoder that is not the context, or a laboratory without captures of both kinds.
        SplitError: all captures of a label are of one day.
    """
    days = check_suspicion(task)
    filled = np.unique(days).tolist()  # of few days not every fold has one
    found, trees = {}, {}
    for number, source in enumerate(task.sources):
        fold = filled[number % len(filled)]
        found[source] = _of_source(task, source, days, fold, report)
        trees[source] = _of_source_trees(task, source, days, fold)
    threshold = _threshold([scores.benign for scores in found.values()])
    left_out = {label: _of_family(task, label, report) for label in task.corpus.labels}
    families = [
        FamilyFigures(label, len(said.suspicion), float((said.suspicion >= threshold).mean()))
        for label, said in left_out.items()
    ]
    laboratories = [_of_laboratory(task, name, threshold, report) for name in task.laboratories]
    learned = np.concatenate([scores.learned.suspicion for scores in found.values()])
    return SuspicionFigures(
        threshold,
        FALSE_ALARMS,
        [_source_figures(source, task, found, trees) for source in task.sources],
        _never_learned(task, found, threshold),
        families,
        laboratories,
        float((learned >= threshold).mean()),
        {
            str(flows): float((np.concatenate([each.prefixes[flows] for each in found.values()]) >= threshold).mean())
            for flows in PREFIXES
        },
        _median_seconds(task.corpus, list(found.values()), threshold),
        _nameless(list(left_out.values()), list(found.values())),
    )


def check_suspicion(task: SuspicionTask) -> Ints:
    """Refuse what `measure_suspicion` cannot measure; the fold of each trace, int64 [n], by day.

    Raises:
        TrainingError: as `measure_suspicion`.
        SplitError: all captures of a label are of one day.
    """
    if task.config.network.encoder != "context":
        raise TrainingError("suspicion is measured of models without an encoder, that read the context of flows alone")
    if len(task.sources) < 2:
        raise TrainingError("--background: expected two directories or more, each a source that is left out once")
    benign = {trace.capture for trace in _benign(task)}
    if shared := sorted(benign & {trace.capture for trace in task.corpus.rare}):
        raise TrainingError(f"--background: {len(shared)} capture(s) bear a label, as {shared[0]}: give benign traffic")
    for name in task.laboratories:
        if not _of_name(task.corpus.traces, name) or not _of_name(_benign(task), name):
            raise TrainingError(f"--laboratory {name}: expected captures of labels and of the background of that name")
    if not task.corpus.rare:
        raise TrainingError("every label is learned: expected labels of fewer captures than --min-captures of the run")
    return day_folds(task.corpus, FOLDS)


def _benign(task: SuspicionTask) -> list[LabelledTrace]:
    return [trace for traces in task.sources.values() for trace in traces]


def _of_name(traces: Sequence[LabelledTrace], start: str) -> list[LabelledTrace]:
    """Those whose captures have names that begin so."""
    return [trace for trace in traces if name_of(trace.capture).startswith(start)]


def _threshold(benign: Sequence[Floats]) -> float:
    """Where at most `FALSE_ALARMS` of the traces of each source lie above: they differ, and the worst one counts."""
    return max(_threshold_of(scores) for scores in benign)


def _threshold_of(scores: Floats) -> float:
    highest = np.sort(scores)[::-1]
    return float(np.clip(np.nextafter(highest[int(FALSE_ALARMS * len(highest))], 2.0), 1e-6, 1.0))


def _say(task: SuspicionTask, network: TraceNetwork, features: Sequence[TraceFeatures]) -> _Said:
    """Suspicion to as many digits as a service rounds to before it compares, so that thresholds mean the same there."""
    logits = score_traces(network, features).logits
    shares = label_shares(logits, task.temperature, len(task.corpus.labels))
    return _Said(np.asarray(shares.sum(axis=1).round(SUSPICION_DIGITS)), shares.max(axis=1))


def _early(task: SuspicionTask, network: TraceNetwork, features: Sequence[TraceFeatures], whole: Floats) -> Floats:
    """The highest suspicion of traces at the end, `whole`, or at any of `PREFIXES` that open windows are asked at."""
    highest = whole.copy()
    for flows in PREFIXES:
        rows = [row for row, trace in enumerate(features) if EARLY_MIN_FLOWS <= flows < len(trace)]
        if rows:
            said = _say(task, network, [features[row].part(slice(flows)) for row in rows])
            highest[rows] = np.maximum(highest[rows], said.suspicion)
    return highest


def _nameless(left_out: Sequence[_Said], found: Sequence[_Scores]) -> NamelessFigures:
    strange, known, rare = (
        np.concatenate([each.confidence for each in said])
        for said in (left_out, [scores.learned for scores in found], [scores.strange for scores in found])
    )
    places = np.unique(np.concatenate((strange, known)))
    gain = [float((strange < place).mean() - (known < place).mean()) for place in places]
    threshold = float(places[int(np.argmax(gain))])
    below = [float((said < threshold).mean()) for said in (strange, known, rare)]
    return NamelessFigures(threshold, *below)


def _of_source(task: SuspicionTask, source: str, days: Ints, fold: int, report: Report) -> _Scores:
    corpus, fields = task.corpus, task.config.network.context
    held = np.flatnonzero(days == fold)
    learned = [trace for name, traces in task.sources.items() if name != source for trace in traces]
    network = fit_context(corpus.traces, corpus.truth, np.flatnonzero(days != fold), task.config, None, report, learned)
    known = context_features([corpus.traces[row] for row in held], fields)
    benign = context_features(task.sources[source], fields)
    whole = _say(task, network, benign).suspicion
    return _Scores(
        whole,
        _early(task, network, benign, whole),
        _say(task, network, context_features(corpus.rare, fields)),
        _say(task, network, known),
        {flows: _say(task, network, [trace.part(slice(flows)) for trace in known]).suspicion for flows in PREFIXES},
        held,
    )


def _trees(
    task: SuspicionTask, malicious: Sequence[LabelledTrace], benign: Sequence[LabelledTrace]
) -> Callable[[Sequence[LabelledTrace]], Floats]:
    """What trees on header fields that learned from these say of traces: the share that calls them malicious."""

    def score(traces: Sequence[LabelledTrace]) -> Floats:
        learned = [*malicious, *benign]
        truth = np.array([1] * len(malicious) + [0] * len(benign))
        shares = fit_predict(
            "header", [each.trace for each in learned], truth, [each.trace for each in traces], 2, task.config.seed
        )
        return np.asarray(shares[:, 1])

    return score


def _of_source_trees(task: SuspicionTask, source: str, days: Ints, fold: int) -> tuple[Floats, Floats]:
    """What the trees say of the source, and of malware never learned."""
    corpus = task.corpus
    malicious = [corpus.traces[row] for row in np.flatnonzero(days != fold)]
    benign = [trace for name, traces in task.sources.items() if name != source for trace in traces]
    strange = task.sources[source]
    said = _trees(task, malicious, benign)([*strange, *corpus.rare])
    return said[: len(strange)], said[len(strange) :]


def _source_figures(
    source: str, task: SuspicionTask, found: Mapping[str, _Scores], trees: Mapping[str, tuple[Floats, Floats]]
) -> SourceFigures:
    own, (benign, strange) = found[source], trees[source]
    threshold = _threshold([scores.benign for name, scores in found.items() if name != source])
    of_trees = _threshold([scores[0] for name, scores in trees.items() if name != source])
    return SourceFigures(
        source,
        len(task.sources[source]),
        float((own.benign >= threshold).mean()),
        float((own.strange.suspicion >= threshold).mean()),
        auroc(own.strange.suspicion, own.benign),
        float((benign >= of_trees).mean()),
        float((strange >= of_trees).mean()),
        auroc(strange, benign),
        float((own.early >= threshold).mean()),
    )


def _never_learned(task: SuspicionTask, found: Mapping[str, _Scores], threshold: float) -> list[FamilyFigures]:
    labels = np.array([trace.label for trace in task.corpus.rare])
    caught = np.mean([scores.strange.suspicion >= threshold for scores in found.values()], axis=0)
    return [
        FamilyFigures(label, int((labels == label).sum()), float(caught[labels == label].mean()))
        for label in sorted(set(labels.tolist()))
    ]


def _of_family(task: SuspicionTask, label: str, report: Report) -> _Said:
    corpus = task.corpus
    own = corpus.truth == corpus.labels.index(label)
    train = np.flatnonzero(~own)
    network = fit_context(corpus.traces, corpus.truth, train, task.config, None, report, _benign(task))
    traces = [corpus.traces[row] for row in np.flatnonzero(own)]
    return _say(task, network, context_features(traces, task.config.network.context))


def _of_laboratory(task: SuspicionTask, laboratory: str, threshold: float, report: Report) -> LaboratoryFigures:
    corpus, background = task.corpus, _benign(task)
    malicious, benign = _of_name(corpus.traces, laboratory), _of_name(background, laboratory)
    left_out = {trace.capture for trace in (*malicious, *benign)}
    own = np.array([trace.capture in left_out for trace in corpus.traces])
    learned = [trace for trace in background if trace.capture not in left_out]
    network = fit_context(corpus.traces, corpus.truth, np.flatnonzero(~own), task.config, None, report, learned)
    measured = [*malicious, *benign]
    truth = np.array([1] * len(malicious) + [0] * len(benign))
    said = _say(task, network, context_features(measured, task.config.network.context)).suspicion >= threshold
    trees = _trees(task, [corpus.traces[row] for row in np.flatnonzero(~own)], learned)(measured) >= 0.5
    return LaboratoryFigures(
        laboratory.strip("_"),
        len(malicious),
        len(benign),
        float(f1_score(truth, said, average="macro")),
        float(f1_score(truth, trees, average="macro")),
    )


def _median_seconds(corpus: TraceCorpus, found: Sequence[_Scores], threshold: float) -> float | None:
    """From the first flow of a trace to the one after which it is called suspicious, over those that are; None where
    none is."""
    seconds = []
    for scores in found:
        for place, row in enumerate(scores.held.tolist()):
            flows = corpus.traces[row].trace.flows
            first = next((n for n in PREFIXES if scores.prefixes[n][place] >= threshold), None)
            if first is not None:
                seconds.append((flows[min(first, len(flows)) - 1].start_us - flows[0].start_us) / 1e6)
    return float(np.median(seconds)) if seconds else None
