"""How suspicion is measured: its threshold, what is said of kinds that were left out, what is refused, the card, and
the way from the command to the checkpoint."""

import json
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from tapline.models.checkpoint import CARD, Suspicion, TracegramNetwork, Unknown, read_trace_checkpoint
from tapline.models.flow import Flow, PacketHead
from tapline.models.trace import Trace, TraceSettings
from tapline.models.verdict import suspicions
from tapline.service.engines.trace_engine import TraceScores
from tapline.training.data.labelled_traces import LabelledTrace, LeftOut, TraceCorpus
from tapline.training.data.split import SplitError
from tapline.training.evaluation.suspicion import (
    PREFIXES,
    SUSPICION,
    SuspicionTask,
    _early,
    _median_seconds,
    _nameless,
    _Said,
    _say,
    _Scores,
    _threshold,
    measure_suspicion,
    read_suspicion,
)
from tapline.training.evaluation.suspicion_card import render_suspicion
from tapline.training.loop.config import TrainingError
from tapline.training.traces.features import TraceFeatures
from tapline.training.traces.trace_config import Phase, context_config
from tapline.training.traces.trace_runs import fit_context
from tests.paths import DATA
from tests.service.traces.fakes import trace_checkpoint
from tests.training.command import invoke, tapline_train

pytestmark = pytest.mark.whole

PORTS = {"bot": 6667, "worm": 445, "rare": 23, "home": 443, "office": 53}
FIELDS = ("port_resp", "packets_orig", "length_1")


def made(kind: str, number: int, name: str = "") -> LabelledTrace:
    """A trace of a kind, told from those of others by port, volume and lengths; malware sends much, others little."""
    rng = np.random.default_rng([PORTS[kind], number])
    is_bad = kind in ("bot", "worm", "rare")
    flows = [
        Flow(
            f"F{each}", 1_000_000 * each, 5, "10.0.0.1", 40000, "192.0.2.1", PORTS[kind], "tcp",
            1, 1, [100 if is_bad else -100], heads=[PacketHead(0, b"")], orig_pkts=4096 if is_bad else 1,
        )
        for each in range(int(rng.integers(3, 6)))
    ]  # fmt: skip
    day = f"2020-01-{1 + number % 28:02}"
    trace = Trace("10.0.0.1", flows[0].start_us, flows[-1].start_us, flows, 0)
    return LabelledTrace(kind if is_bad else "", f"{kind}/{name or day}_{number}.pcap", trace)


@pytest.fixture(scope="module")
def task():
    torch.set_num_threads(1)  # as the command does
    traces = [made(kind, number, "LAB" if number < 2 else "") for kind in ("bot", "worm") for number in range(8)]
    corpus = TraceCorpus(traces, ["bot", "worm"], LeftOut(), [made("rare", number) for number in range(2)])
    sources = {
        kind: [made(kind, number, "LAB" if number < 2 else "") for number in range(6)] for kind in ("home", "office")
    }
    config = context_config(TraceSettings(subject="originator"), FIELDS)
    network = msgspec.structs.replace(config.network, feature_size=16, queries=4, n_class=2)
    config = msgspec.structs.replace(config, network=network, traces=Phase(8, 64, 16, 1e-2), background_share=0.5)
    return SuspicionTask(corpus, sources, config, 1.0, ["LAB_"])


@pytest.fixture(scope="module")
def figures(task):
    return measure_suspicion(task)


def test_the_threshold_leaves_the_share_of_false_alarms_above():
    one = np.arange(1, 1001) / 1000
    threshold = _threshold([one])
    assert 0.995 < threshold < 0.9950001
    assert (one >= threshold).sum() == 5
    assert (one[::-1] >= _threshold([one[::-1]])).sum() == 5


def test_the_worst_source_sets_the_threshold():
    few, many = np.array([0.9] + [0.1] * 49), np.array([0.8] * 4 + [0.2] * 996)
    assert _threshold([few, many]) == pytest.approx(0.9)  # 1 of 50 is too many
    assert (few >= _threshold([few, many])).sum() == 0
    assert (many >= _threshold([few[1:], many])).sum() == 4  # 4 of 1,000 are not
    assert _threshold([many, few[1:]]) == _threshold([few[1:], many]) == pytest.approx(0.2)


@pytest.mark.parametrize(("scores", "expected"), [([0.0, 0.0], 1e-6), ([1.0, 1.0], 1.0), ([0.5], 0.5)])
def test_the_threshold_is_one_that_a_checkpoint_may_have(scores, expected):
    threshold = _threshold([np.array(scores)])
    assert threshold == pytest.approx(expected)
    assert msgspec.convert({"threshold": threshold}, Suspicion).threshold == threshold


def test_suspicion_is_what_a_service_compares_with_the_threshold(task, monkeypatch):
    network = TracegramNetwork(n_class=3, feature_size=8, emb_dim=8)
    checkpoint = trace_checkpoint(labels=["bot", "worm"], network=network, unknown=Unknown(0.0, background=True))
    logits = np.float32([[8, 0, -8], [0, 0, -20], [0, 1, 2]])
    scored = TraceScores(logits, [])
    monkeypatch.setattr("tapline.training.evaluation.suspicion.score_traces", lambda *_: scored)
    said = _say(task, None, [])
    assert said.confidence == pytest.approx([0.99966454, 0.5, 0.24472847], abs=1e-6)
    assert said.suspicion.tolist() == suspicions(logits, checkpoint).tolist() == [1.0, 1.0, 0.334759]


def test_what_can_be_told_apart_is(task, figures):
    assert [(row.source, row.traces) for row in figures.sources] == [("home", 6), ("office", 6)]
    assert all(row.auroc == row.auroc_trees == 1 for row in figures.sources)
    assert all(row.caught == 1 for row in figures.sources)
    assert [(row.label, row.traces, row.caught) for row in figures.never_learned] == [("rare", 2, 1)]
    assert [(row.label, row.traces, row.caught) for row in figures.families] == [("bot", 8, 1), ("worm", 8, 1)]
    (laboratory,) = figures.laboratories
    assert (laboratory.laboratory, laboratory.malicious, laboratory.benign) == ("LAB", 4, 4)
    assert laboratory.macro_f1 == laboratory.macro_f1_trees == 1
    assert figures.learned == figures.by_flows["32"] == 1
    assert list(figures.by_flows) == [str(flows) for flows in PREFIXES]
    assert 0 <= figures.median_seconds <= 4


def test_alarms_of_open_windows_count_what_is_suspicious_at_any_time(task, monkeypatch):
    """Of twenty flows eight alarm, though all of them do not; of eight and fewer nobody asks before the end."""

    def score(network, features):
        return TraceScores(np.float32([[9.0 if len(trace) == 8 else -9.0, -9, 0] for trace in features]), [])

    monkeypatch.setattr("tapline.training.evaluation.suspicion.score_traces", score)
    times = np.zeros(20, np.int64)
    traces = [
        TraceFeatures(np.zeros((1, 20, 0), np.float32), times, times, np.zeros((20, 3), np.uint8)).part(slice(flows))
        for flows in (20, 8, 4)
    ]
    assert (_early(task, None, traces, np.array([0.0, 0.25, 0.5])) > 0.9).tolist() == [True, False, False]


def test_the_label_is_left_out_below_the_confidence_that_tells_strange_from_known():
    def said(*confidence):
        return _Said(np.ones(len(confidence)), np.array(confidence))

    empty = np.zeros(0)
    scores = _Scores(empty, empty, said(0.1, 0.9), said(0.3, 0.8, 0.9, 0.95), {}, empty.astype(np.int64))
    found = _nameless([said(0.2, 0.5), said(0.6, 0.85)], [scores])
    assert (found.threshold, found.left_out, found.learned, found.never_learned) == (0.8, 0.75, 0.25, 0.5)


def test_the_card_has_every_row(figures):
    text = render_suspicion(figures)
    assert f"a share of at least {figures.threshold:.4f}" in text
    assert "5 of 1,000 traces" in text
    for row in ("| home | 6 |", "| office | 6 |", "| rare | 2 | 100% |", "| bot | 8 | 100% |", "| worm | 8 | 100% |",
                "| LAB | 4 | 4 | 1.000 | 1.000 |"):  # fmt: skip
        assert row in text
    assert f"bears a label from confidence {figures.nameless.threshold:.3f} on" in text
    assert "when 8, 16, 32 flows had been seen" in text
    assert "| flows | 1 | 2 | 4 | 8 | 16 | 32 |" in text
    assert "nan" not in text
    without = msgspec.structs.replace(figures, laboratories=[])
    assert "No laboratory was left out." in render_suspicion(without)


def test_where_nothing_is_called_suspicious_no_time_is_said(task, figures):
    nothing = msgspec.structs.replace(figures, learned=0.0, median_seconds=None)
    text = render_suspicion(nothing)
    assert "None" not in text
    assert "half are so" not in text
    assert "half are so" in render_suspicion(figures)
    assert _median_seconds(task.corpus, [], 1.0) is None


def test_what_cannot_be_measured_is_refused(task):
    def refused(message, **changes):
        with pytest.raises(TrainingError, match=message):
            measure_suspicion(replace(task, **changes))

    refused("expected two directories or more", sources={"home": task.sources["home"]})
    refused("every label is learned", corpus=replace(task.corpus, rare=[]))
    network = msgspec.structs.replace(task.config.network, encoder="mm4flow")
    refused("models without an encoder", config=msgspec.structs.replace(task.config, network=network))
    twice = {**task.sources, "more": [task.corpus.rare[0]]}
    refused("--laboratory NONE: expected captures of labels and of the background", laboratories=["LAB_", "NONE"])
    refused("--laboratory LAB_: expected", sources={kind: traces[2:] for kind, traces in task.sources.items()})
    refused(r"1 capture\(s\) bear a label, as rare/", sources=twice)


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    return make_captures(tmp_path_factory.mktemp("suspicion"))


def make_captures(root):
    """Features of `malware` of two labels and a rare one, with days in names, of two sources of benign traffic, a run
    and its evaluation."""
    for label, count in (("Aria", 3), ("HomeMaticPlug", 3), ("MAXGateway", 1)):
        folder = root / "captures" / "malware" / label
        folder.mkdir(parents=True)
        for number, capture in enumerate(sorted((DATA / "traces" / label).iterdir())[:count]):
            shutil.copy(capture, folder / f"2020-01-0{1 + number}_{label}.pcap")
    for source, names in (("home", ("bt-dns.pcap", "http.pcapng")), ("office", ("NTPv3.pcap", "hls.pcapng"))):
        (root / "captures" / source).mkdir()
        for name in names:
            shutil.copy(DATA / "protocols" / "pcap" / name, root / "captures" / source)
    for name in ("malware", "home", "office"):
        label = ["--label-from-folder"] if name == "malware" else []
        tapline_train("extract", root / "captures" / name, *label, "--heads", "header", "--out", root / name)
    quick = ["--min-captures", "2", "-ep", "1", "--draws", "16", "-b", "8"]
    features = ["--features", root / "malware", "--background", root / "home", "--background", root / "office"]
    tapline_train("train-traces", *features, "--out", root / "run", *quick)
    arguments = [*features, "--run", root / "run", "--out", root / "evaluation"]
    by_day = ["evaluate-traces", *arguments, "--by-day", "--folds"]
    assert "2 folds of days" in tapline_train(*by_day, "2", "--dry-run")
    assert "the days fill 3 of them" in str(invoke(*by_day, "4").exception)
    assert "main: macro-F1" in tapline_train(*by_day, "2")
    return root


def evaluate_suspicion(captures, *sources, evaluation="evaluation"):
    """The command, and its arguments."""
    strange = [part for source in sources for part in ("--background", source)]
    return ["evaluate-suspicion", "--features", captures / "malware", "--run", captures / "run", "--evaluation",
            captures / evaluation, *strange]  # fmt: skip


def export(captures, version):
    options = ["--evaluation", captures / "evaluation", "--out", captures, "--name", "bad", "--version", version]
    tapline_train("export-traces", "--run", captures / "run", *options)
    return captures / "bad" / version


def test_the_command_measures_and_the_checkpoint_has_the_threshold(captures):
    before = read_trace_checkpoint(export(captures, "1"))
    assert before.suspicion is None
    assert "2 folds of whole days, all captures of a day in one" in (captures / "bad" / "1" / CARD).read_text()
    output = tapline_train(*evaluate_suspicion(captures, captures / "home", captures / "office"))
    for source in ("home", "office"):
        assert f"{source} left out: " in output
    figures = read_suspicion(captures / "evaluation")
    assert [row.label for row in figures.never_learned] == ["MAXGateway"]
    after = read_trace_checkpoint(export(captures, "2"))
    assert after.suspicion == Suspicion(figures.threshold)
    assert 0 <= figures.nameless.threshold - after.unknown.threshold < 1e-4
    assert after.metrics["suspicion"] == json.loads((captures / "evaluation" / SUSPICION).read_text())
    card = (captures / "bad" / "2" / CARD).read_text()
    assert render_suspicion(figures) in card
    assert "## Suspicion" not in (captures / "bad" / "1" / CARD).read_text()


def test_sources_of_one_name_a_lone_source_and_damaged_figures_are_refused(captures, tmp_path):
    shutil.copytree(captures / "office", tmp_path / "home")
    same = invoke(*evaluate_suspicion(captures, captures / "home", tmp_path / "home"))
    assert "two feature directories of this name" in str(same.exception)
    lone = invoke(*evaluate_suspicion(captures, captures / "home"))
    assert "expected two directories or more" in str(lone.exception)
    (tmp_path / SUSPICION).write_text("{}")
    with pytest.raises(TrainingError, match="evaluate again"):
        read_suspicion(tmp_path)


def test_of_two_days_each_is_held_out_however_many_sources_there_are(task, monkeypatch):
    traces = [replace(made(kind, number % 2), capture=f"{kind}/2020-01-0{1 + number % 2}_{number}.pcap")
              for kind in ("bot", "worm") for number in range(4)]  # fmt: skip
    sources = {f"home-{source}": [made("home", 4 * source + number) for number in range(2)] for source in range(3)}
    quick = msgspec.structs.replace(task.config, traces=Phase(1, 16, 16, 1e-2))
    few = replace(task, corpus=replace(task.corpus, traces=traces), sources=sources, config=quick, laboratories=[])
    learned = []

    def fit(traces, truth, train, *rest):
        learned.append(len(train))
        return fit_context(traces, truth, train, *rest)

    monkeypatch.setattr("tapline.training.evaluation.suspicion.fit_context", fit)
    assert [row.traces for row in measure_suspicion(few).sources] == [2, 2, 2]
    assert learned == [4, 4, 4, 4, 4]  # one of two days for each source, one of two labels for each label
    one_day = [replace(trace, capture=trace.capture.replace("-02_", "-01_")) for trace in traces]
    with pytest.raises(SplitError, match=r"has 1 day\(s\): at least 2 are needed to split by day"):
        measure_suspicion(replace(few, corpus=replace(task.corpus, traces=one_day)))
