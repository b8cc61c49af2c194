"""Leaving out whole corpora: what is learned, what is measured, and what a table of ports says beside it."""

import json
import os
import random

import msgspec
import numpy as np
import pytest

from tapline.models.context import BARRED
from tapline.models.flow import Flow, flow_to_line
from tapline.training.data.corpus import make_corpus
from tapline.training.data.split import SplitError
from tapline.training.data.store import open_samples
from tapline.training.evaluation import flow_evaluation
from tapline.training.evaluation.evaluation_record import EvaluationSettings
from tapline.training.evaluation.flow_evaluation import evaluate_run
from tapline.training.evaluation.flow_folds import MIN_CORPUS_FLOWS, corpus_folds
from tapline.training.evaluation.flow_outcomes import measure_flows
from tapline.training.evaluation.outcomes import read_outcomes
from tapline.training.evaluation.rivals import PortTable
from tapline.training.flows.context_counts import learn_context
from tapline.training.flows.flow_record import read_run
from tapline.training.loop.config import TrainingConfig, TrainingError
from tests.training.command import invoke, tapline_train

pytestmark = pytest.mark.whole

BY_CORPUS = EvaluationSettings(by="corpus")
SMALL = ["-d", "32", "-nh", "2", "-l", "1", "-f", "64", "--packets", "8", "--content-bytes", "24", "--draws", "256"]
PORTS = {"dns": 53, "web": 80, "lone": 9999}
CAPTURES, FLOWS = 3, 8
COPIES = 4


def flow(label, seed, port=None):
    rng = random.Random(f"{label} {seed}")
    content = label.encode() * 3 + rng.randbytes(8)
    lengths = [len(content), -rng.randint(50, 60)]
    return Flow(
        f"C{label}{seed}", 1_700_000_000_000_000, 0, "192.0.2.1", 40_000, "198.51.100.1", port or PORTS[label], "udp",
        1, 1, lengths, content, b"answer",
    )  # fmt: skip


def write(path, flows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(flow_to_line(each)) + b"\n" for each in flows))


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Corpora `a` and `b` of two labels, the ports of `b` exchanged and some of its flows those of `a`; `c` has a label
    that nobody else has; `tiny` is too small to be measured."""
    root = tmp_path_factory.mktemp("corpora")
    for corpus, labels in {"a": ("dns", "web"), "b": ("dns", "web"), "c": ("dns", "web", "lone")}.items():
        for label in labels:
            for capture in range(CAPTURES):
                port = PORTS["web" if label == "dns" else "dns"] if corpus == "b" else None
                flows = [flow(label, f"{corpus}{capture}{n}", port) for n in range(FLOWS)]
                if (corpus, label, capture) == ("b", "dns", 0):
                    flows[:COPIES] = [flow(label, f"a0{n}") for n in range(COPIES)]
                write(root / corpus / label / f"{capture}.ndjson", flows)
    write(root / "tiny" / "dns" / "0.ndjson", [flow("dns", "tiny")])
    out = tmp_path_factory.mktemp("features") / "corpora"
    tapline_train("extract", *(root / name for name in ("a", "b", "c", "tiny")), "--label-from-folder", "--out", out)
    return out


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    tapline_train("finetune", "--features", features, "--out", out, *SMALL, "-ep", 16, "-lr", "5e-3")
    return out


def test_each_corpus_is_measured_by_models_that_never_saw_it(features, tmp_path):
    corpus = make_corpus(open_samples([features], tmp_path), 3)
    assert corpus.labels == ["dns", "lone", "web"]
    folds = {fold.corpus: fold for fold in corpus_folds(corpus, TrainingConfig(), BY_CORPUS)}
    assert list(folds) == ["a", "b", "c"]
    of_both = 2 * CAPTURES * FLOWS
    for name, fold in folds.items():
        assert {capture.partition("/")[0] for capture in fold.held.captures_of()} == {name}
        measured = of_both - (COPIES if name in "ab" else 0)  # what the other side holds, too
        assert len(fold.held) == measured >= MIN_CORPUS_FLOWS
        assert set(fold.held.labels_of()) == {"dns", "web"}
    assert set(folds["c"].strange.labels_of()) == {"lone"}
    assert len(folds["c"].strange) == CAPTURES * FLOWS
    assert 1 not in folds["c"].data.truth
    assert {len(folds[name].strange) for name in "ab"} == {0}


def test_a_fold_is_measured_with_the_context_of_its_own_training_set(features, tmp_path, monkeypatch):
    corpus = make_corpus(open_samples([features], tmp_path), 3)
    config, learned = TrainingConfig(threads=1), []

    def nothing(model, flows, features):
        return np.zeros((len(flows), len(corpus.labels)), np.float32)

    def learn(data, port_weight):
        learned.append(data)
        return learn_context(data, port_weight)

    monkeypatch.setattr("tapline.training.evaluation.flow_outcomes.predict", nothing)
    monkeypatch.setattr("tapline.training.evaluation.flow_outcomes.learn_context", learn)
    folds = list(corpus_folds(corpus, config, BY_CORPUS))
    outcomes = {fold.corpus: measure_flows(fold, corpus, config, None) for fold in folds}
    names = corpus.samples.capture_names
    for data, fold in zip(learned, folds, strict=True):
        assert {names[capture] for capture in data.captures.tolist()}.isdisjoint(fold.held.captures_of())
    holders = {name: learn_context(data, 0.7).ports.holders["udp"] for name, data in zip("abc", learned, strict=True)}
    dns, lone, web = range(3)
    assert holders["b"] == {53: {dns: 2 * CAPTURES + 1}, 80: {web: 2 * CAPTURES}, 9999: {lone: CAPTURES}}
    assert holders["a"][53] == {dns: CAPTURES + 2, web: CAPTURES}  # a capture of b holds flows of a, `tiny` is one more
    assert lone not in [number for held in holders["c"].values() for number in held]
    of_b = outcomes["b"]
    dns_in_b = of_b.truth == dns  # on the port of web: what the others say of it decides, as the network says nothing
    assert (of_b.logits[dns_in_b].argmax(axis=1) == web).all()
    assert not of_b.without_ports.any()
    assert (outcomes["c"].logits[:, lone] <= BARRED / 2).all()  # no flow of it was learned, on any transport
    assert (of_b.random_ports[:, dns] != of_b.logits[:, dns]).any()
    assert outcomes["c"].unknown_labels == ["lone"] * (CAPTURES * FLOWS)
    silent = measure_flows(folds[1], corpus, msgspec.structs.replace(config, port_weight=0.0), None)
    assert not silent.logits.any()
    assert not len(silent.without_ports)


def test_background_is_learned_in_every_fold_and_measured_in_none(tmp_path):
    def named(corpus, label, count):
        return [flow("web" if label == "background" else label, f"{corpus}{label}{n}", 1) for n in range(count)]

    for corpus in "ab":
        for label in ("dns", "web", "background"):
            for capture in range(3):
                write(tmp_path / corpus / label / f"{capture}.ndjson", named(f"{corpus}{capture}", label, FLOWS))
    out = tmp_path / "features"
    tapline_train("extract", tmp_path / "a", tmp_path / "b", "--label-from-folder", "--out", out)
    listed = tapline_train("labels", "--features", out)
    assert "background\t6\t48\tnot learned by finetune as a label: it is background" in listed
    corpus = make_corpus(open_samples([out], tmp_path), 3)
    assert (corpus.labels, corpus.rare) == (["dns", "web"], [])
    assert make_corpus(open_samples([out], tmp_path), 1, 6 * FLOWS).labels == ["dns", "web"]
    for fold in corpus_folds(corpus, TrainingConfig(), BY_CORPUS):
        assert fold.background
        assert (fold.data.truth == 2).sum() == 3 * FLOWS
        assert set(fold.held.labels_of()) == {"dns", "web"}
        assert len(fold.strange) == 0
    run = tmp_path / "run"
    tapline_train("finetune", "--features", out, "--out", run, *SMALL, "-ep", 1)
    assert (read_run(run).network.n_class, {each.label for each in read_run(run).background}) == (3, {"background"})
    card = tapline_train("card", "--run", run, "--name", "x", "--version", "1")
    assert f"Background, {6 * FLOWS} flows that bear the label `background`" in card
    assert "too rare to learn" not in card


def test_one_corpus_cannot_be_left_out(protocols, tmp_path):
    corpus = make_corpus(open_samples([protocols], tmp_path), 3)
    with pytest.raises(SplitError, match=r"two corpora with 20 flows are needed.* these hold: pcap 0; "):
        next(corpus_folds(corpus, TrainingConfig(), BY_CORPUS))


def test_a_port_table_says_what_most_captures_say():
    flows = [flow("dns", n, port=53) for n in range(6)] + [flow("web", n, port=80) for n in range(3)]
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    captures = np.array([0, 0, 0, 0, 1, 2, 3, 3, 3])  # port 53: one capture says 0, two say 1
    table = PortTable(flows, truth, captures)
    turned = msgspec.structs.replace(flows[6], orig_p=80, resp_p=40_000)
    other = msgspec.structs.replace(flows[0], proto="tcp")
    ping = msgspec.structs.replace(flows[0], proto="icmp", orig_p=8, resp_p=0)
    assert table.predict([flows[0], flows[6], turned, flow("dns", 0, port=99), other, ping], 7).tolist() == [
        1, 1, 1, 7, 7, 7,
    ]  # fmt: skip
    assert PortTable([ping], np.array([2]), np.array([0])).predict([ping], 7).tolist() == [2]


def end_process(*_):
    os._exit(1)


def refuse(*_):
    raise TrainingError("told by a process")


@pytest.mark.parametrize(("fault", "said"), [(end_process, "is there memory for all --processes"), (refuse, "told by")])
def test_a_process_that_fails_is_told_in_a_sentence(run, features, fault, said):
    with pytest.raises(TrainingError, match=said):
        evaluate_run([features], run, BY_CORPUS, int8=fault, processes=2)
    assert not (run / "evaluation.json").exists()


def test_evaluate_by_corpus(run, features, monkeypatch):
    evaluate = ["evaluate", "--features", features, "--run", run, "--by", "corpus"]
    assert "3 folds of corpora (a, b, c)" in tapline_train(*evaluate, "--dry-run")
    with monkeypatch.context() as patched:
        patched.setattr(flow_evaluation, "_outcome", None)  # this process measures none
        tapline_train(*evaluate, "--processes", 2)
    by_two = read_outcomes(run)
    said = tapline_train(*evaluate)
    for one, other in zip(by_two, read_outcomes(run), strict=True):
        assert one.corpus == other.corpus
        np.testing.assert_array_equal(one.logits, other.logits)
    assert "without b: macro-F1" in said
    assert "macro-F1 with ports off " in said
    record = json.loads((run / "evaluation.json").read_text())
    figures = record["figures"]
    assert (record["settings"]["by"], record["settings"]["folds"]) == ("corpus", 3)
    assert [fold["corpus"] for fold in figures["folds"]] == ["a", "b", "c"]
    by_ports = {fold["corpus"]: fold["macro_f1_ports"] for fold in figures["folds"]}
    assert by_ports["b"] == 0
    assert by_ports["c"] == pytest.approx(1 / 3)  # 53 is DNS in one capture more, 80 is a tie: all are called DNS
    assert figures["without_ports"]["macro_f1"] > 0.9 > figures["macro_f1"] > figures["macro_f1_ports"]
    assert {model["name"] for model in figures["models"]} >= {
        "this model", "this model, ports off", "this model, random ports", "this model, forged ports",
        "table of server ports, random ports", "trees with context, random ports",
    }  # fmt: skip
    by_name = {fold["corpus"]: fold for fold in figures["folds"]}
    assert by_name["c"]["unknown_flows"] == CAPTURES * FLOWS
    assert by_name["c"]["without_ports"]["unknown_auroc"] is not None
    assert by_name["a"]["unknown_rejected"] is None
    flows = [fold["flows"] for fold in figures["folds"]]
    assert figures["accuracy"] == pytest.approx(np.average([f["accuracy"] for f in figures["folds"]], weights=flows))
    assert figures["gain_on_ports_interval"]["low"] <= figures["gain_on_ports_interval"]["high"]
    assert 0 <= figures["unknown_confident"] <= 1
    card = tapline_train("card", "--run", run, "--name", "x", "--version", "1")
    assert "Each of 3 corpora was left out once" in card
    assert "| left out | captures |" in card
    for line in ("| this model, ports off | ", "| trees with context, forged ports | ", "| table of server ports | "):
        assert line in card
    assert "`--ports off`" in card
    assert "### Mistakes with a confidence above 0.9" in card
    report = (run / "report.html").read_text()
    assert "table of server ports" in report
    assert "Without b: macro-F1" in report
    again = tapline_train("calibrate", "--run", run, "--false-rejection", "0.1")
    assert "rejects" in again


@pytest.mark.parametrize("option", [("--tuned", "0"), ("--split", "split.json")])
def test_every_corpus_is_reported(run, features, option):
    result = invoke("evaluate", "--features", features, "--run", run, "--by", "corpus", *option)
    assert "leave --tuned and --split out" in str(result.exception)
