"""The card of a trace checkpoint: that of the shipped one is made from its records, that of others speaks of theirs."""

import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tapline.models.card_header import without_header
from tapline.models.checkpoint import CARD, TracegramCheckpoint, read_trace_checkpoint
from tapline.models.trace import TraceSettings
from tapline.service.inference.repository import ZOO
from tapline.training.data.labelled_traces import folds_of, make_trace_corpus
from tapline.training.data.samples import read_samples
from tapline.training.evaluation.attribution import remove_flows
from tapline.training.evaluation.evaluation_record import Faithfulness, TraceEvaluation
from tapline.training.evaluation.suspicion import SuspicionFigures
from tapline.training.evaluation.trace_card import render_trace_card
from tapline.training.evaluation.trace_figures import EARLY_CONFIDENCES, summarise
from tapline.training.export.run_export import trace_manifest
from tapline.training.traces.trace_config import TraceTrainingConfig
from tapline.training.traces.trace_record import TraceRun
from tapline.training.traces.trace_runs import classes_of
from tests.paths import ROOT
from tests.training.evaluation.test_kept_folds import right
from tests.training.traces.test_traces import random_network, random_traces

pytestmark = pytest.mark.whole

SHIPPED = [ZOO / "iot-devices" / "3", ZOO / "intrusion" / "3"]


def run_of(corpus, settings, **changes):
    config = msgspec.structs.replace(classes_of(TraceTrainingConfig(), corpus), trace=settings)
    flows = sum(len(trace.trace.flows) for trace in corpus.traces)
    fields = {"not_learned": corpus.left_out.labels, "by_address": corpus.by_address(settings)} | changes
    return TraceRun(
        "train-traces", config, {}, "", corpus.labels, len(corpus.traces), flows, {}, "x86_64", 30.0, **fields
    )


def evaluation_of(corpus, **options):
    """Figures of outcomes that call every trace by its label."""
    fold_of = folds_of(corpus, 3, 0)
    outcomes = {fold: right(corpus, None, fold_of, fold) for fold in range(3)}
    names = ("main", "trees-header", "unknown")
    figures = summarise(corpus, dict.fromkeys(names, outcomes), "main", 3, (), {}, "unknown", **options)
    return msgspec.json.decode(msgspec.json.encode(figures), type=TraceEvaluation)


def card_of(run, figures):
    return render_trace_card(trace_manifest(run, "mine", "1", figures), run, figures, "")


@pytest.fixture(scope="module")
def by_host(features):
    """The traces of hosts, by their address; each cut to three flows."""
    settings = TraceSettings(subject="originator", max_flows=3)
    return make_trace_corpus(read_samples(features), settings), settings


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.parent.name)
def test_the_shipped_card_is_made_from_its_records(shipped):
    checkpoint = read_trace_checkpoint(shipped)
    figures = msgspec.convert(checkpoint.metrics["cross_validation"], TraceEvaluation)
    card = without_header((shipped / CARD).read_text())
    head = re.search(r"Trained on (\d+) traces with (\d+) flows; phase 1 took ([\d.]+) minutes on (.*)\.\n", card)
    rare = re.search(r"Not learned, of too few captures: (.*)\.\n", card)
    run = TraceRun(
        "train-traces", TraceTrainingConfig(), {}, "", checkpoint.labels, int(head[1]), int(head[2]), {}, head[4],
        60 * float(head[3]), not_learned=rare[1].split(", ") if rare else [],
    )  # fmt: skip
    notes = (ROOT / "training" / "cards" / f"{checkpoint.name}.md").read_text()
    suspicion = checkpoint.suspicion and msgspec.convert(checkpoint.metrics["suspicion"], SuspicionFigures)
    assert render_trace_card(checkpoint, run, figures, notes, suspicion) == card
    assert "| traces | macro-F1 |" in card


def test_a_card_of_own_traces_speaks_of_labels_and_of_hosts(by_host):
    corpus, settings = by_host
    card = card_of(run_of(corpus, settings), evaluation_of(corpus, left_out=["Aria"]))
    assert not re.search(r"device|hardware|merged|network card|MAC\b", card, re.IGNORECASE)
    assert "the flows of one host, by the address that opens its connections, in windows of 600 s." in card
    assert (
        "| | captures of each label | traces | macro-F1 | gain on the trees on header fields |\n|---|---|---|---|---|"
        in card
    )
    assert "| label | traces | precision | recall | F1 |" in card
    assert "traces of labels that a model trained without them never saw (Aria)" in card
    assert "None: every trace was called by its label." in card


def test_what_no_trace_showed_is_not_stated_as_a_figure(by_host):
    corpus, settings = by_host
    figures = evaluation_of(corpus, left_out=[])
    assert (figures.early.confidence, figures.early.accuracy) == (EARLY_CONFIDENCES[-1], None)
    assert (figures.unknown, figures.faithfulness is None) == (None, False)
    figures = msgspec.structs.replace(figures, faithfulness=None)
    card = card_of(run_of(corpus, settings), figures)
    assert "no trace measured got one, so that it is not known how often these verdicts are right" in card
    assert "Attribution was not measured: no trace has 4 flows or more." in card
    assert "It was not measured on labels that were not learned." in card
    assert not re.search(r"\b0% of the traces|100\.0%|nan", card)


def test_traces_too_short_to_leave_flows_out_give_no_figure_of_attribution(by_host):
    corpus, _ = by_host
    fold_of = folds_of(corpus, 3, 0)
    short = {fold: right(corpus, None, fold_of, fold) for fold in range(3)}
    nothing = np.zeros(0)
    short = {
        fold: replace(each, removal_rows=nothing.astype(np.int64), top=nothing, random=nothing)
        for fold, each in short.items()
    }
    names = {"main": short, "trees-header": short}
    assert summarise(corpus, names, "main", 3, (), {}).faithfulness is None
    removed = remove_flows(random_network(), random_traces([1, 3]), 1.0, 0)
    assert (len(removed.rows), len(removed.top), len(removed.random)) == (0, 0, 0)


def test_importance_that_does_not_hold_is_said_so(by_host):
    corpus, settings = by_host
    figures = evaluation_of(corpus, left_out=["Aria"])
    worse = Faithfulness(2, 0.25, -0.014, 0.029, -0.043, figures.variants[0].gain_interval)
    card = card_of(run_of(corpus, settings), msgspec.structs.replace(figures, faithfulness=worse))
    assert "confidence in the label rises by 0.014 on average, without as many random ones falls by 0.029;" in card
    assert "This does not show that the flows called important matter more than others." in card


def test_folds_that_chose_settings_and_labels_that_were_not_learned_are_named(by_host):
    corpus, settings = by_host
    figures = msgspec.structs.replace(evaluation_of(corpus, left_out=["Aria"]), tuned=[0, 1])
    card = card_of(run_of(corpus, settings, not_learned=["Lone"]), figures)
    assert (
        "Settings were chosen on folds 0 and 1, which every figure below leaves out: 9 traces of 1 fold remain." in card
    )
    assert "Not learned, of too few captures: Lone." in card


def test_an_address_in_place_of_a_card_is_said(corpus, features):
    settings = TraceTrainingConfig().trace
    assert corpus.by_address(settings) == 0
    assert "the flows of one network card in windows of 600 s.\n" in card_of(run_of(corpus, settings), None)
    samples = [
        msgspec.structs.replace(each, flow=msgspec.structs.replace(each.flow, link_type=21))
        for each in read_samples(features)
        if each.label == "Aria"
    ] + [each for each in read_samples(features) if each.label != "Aria"]
    some = make_trace_corpus(samples, settings)
    assert "an address stands for the card: so in 3 of the traces" in card_of(run_of(some, settings), None)


def test_a_manifest_without_an_evaluation_is_not_calibrated(corpus):
    run = run_of(corpus, TraceTrainingConfig().trace)
    assert isinstance(trace_manifest(run, "mine", "1", None), TracegramCheckpoint)
    assert "Not evaluated: the confidence is not calibrated." in card_of(run, None)


@pytest.mark.parametrize(("measured", "kept"), [(0.99997, 0.9999), (1.0, 1.0), (0.29, 0.29), (0.12345, 0.1234)])
def test_a_threshold_of_a_manifest_is_not_above_the_measured_one(corpus, measured, kept):
    """Else a model that is as sure as it was measured would know nothing."""
    run = run_of(corpus, TraceTrainingConfig().trace)
    figures = msgspec.structs.replace(evaluation_of(corpus), threshold=measured)
    assert trace_manifest(run, "mine", "1", figures).unknown.threshold == kept
