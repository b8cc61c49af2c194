"""From captures to a served checkpoint, on a few real captures; and runs that must fail cleanly."""

import json
import shutil

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tapline.models.checkpoint import Mm4flowNetwork, read_checkpoint
from tapline.models.encode import encode
from tapline.models.mm4flow import Mm4flow
from tapline.models.verdict import context_terms, flow_probabilities, flow_verdicts
from tapline.service.engines.loading import load_engine
from tapline.training.commands.tapline_train import main
from tapline.training.data.corpus import make_corpus, make_training_set
from tapline.training.data.extraction import extract
from tapline.training.data.label_reading import read_labels
from tapline.training.data.origins import ExtractError, find_origins
from tapline.training.data.samples import MANIFEST, SampleError, read_manifest, read_samples
from tapline.training.data.store import open_samples
from tapline.training.evaluation.calibration import label_shares
from tapline.training.evaluation.flow_evaluation import load_model
from tapline.training.evaluation.flow_folds import Fold, network_of
from tapline.training.evaluation.flow_outcomes import measure_flows
from tapline.training.evaluation.outcomes import read_outcomes
from tapline.training.flows.finetune import fit
from tapline.training.flows.flow_record import read_run
from tapline.training.flows.pretrain import mask_tokens
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.new_networks import new_model, order_lengths
from tapline.training.loop.trainer import Trainer
from tests.paths import DATA
from tests.training.command import invoke, tapline_train

pytestmark = pytest.mark.whole

PROTOCOLS = DATA / "protocols"
SMALL = ["-d", "32", "-nh", "2", "-l", "1", "-f", "64", "--packets", "8", "--content-bytes", "24", "--draws", "256"]


@pytest.fixture(scope="module")
def features(protocols):
    """Here of protocols, not of devices."""
    return protocols


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tapline_train("pretrain", "--features", features, "--out", folder / "encoders", *SMALL, "-ep", 2)
    encoders = ["--encoders", folder / "encoders"]
    tapline_train(
        "finetune", "--features", features, "--out", folder / "run", *SMALL, *encoders, "-ep", 12, "-lr", "5e-3"
    )
    return folder


def test_extract_says_what_was_kept_and_left_out(features):
    manifest = read_manifest(features)
    assert (manifest.captures, manifest.warnings) == (24, {})
    samples = list(read_samples(features))
    assert len(samples) == manifest.samples
    assert sum(sample.label is not None for sample in samples) == manifest.labelled > 30
    assert {sample.label for sample in samples} >= {"DNS", "HTTP", "NTP", "TLS"}
    assert all(sample.flow.payload_lengths for sample in samples)


def test_extract_reads_logs_as_captures(tmp_path):
    flows = [
        [sample.flow.payload_lengths for sample in read_samples(out)]
        for root, out in ((PROTOCOLS / "logs", tmp_path / "a"), (PROTOCOLS / "pcap" / "tk.pcap", tmp_path / "b"))
        if extract(find_origins([root]), out)
    ]
    assert flows[0] == flows[1] == [[30, -46], [30, -89], [30, -89]]


def test_learns_the_protocols_it_was_shown(run, features):
    log = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (log[0]["kind"], log[0]["config"]["epochs"]) == ("start", 12)
    epochs = [line for line in log if line["kind"] == "epoch"]
    assert [(line["epoch"], line["step"]) for line in epochs] == [(n, 8 * (n + 1)) for n in range(12)]
    assert epochs[-1]["loss"] < 0.7 * epochs[0]["loss"]
    assert list((run / "run" / "tensorboard" / "finetune").glob("events.*"))
    tapline_train("export", "--run", run / "run", "--out", run / "zoo", "--name", "small", "--version", "1")
    folder = run / "zoo" / "small" / "1"
    checkpoint = read_checkpoint(folder)
    assert checkpoint.labels == ["DNS", "HTTP", "NTP", "TLS"]
    assert checkpoint.unknown.background
    samples = [sample for sample in read_samples(features) if sample.label in checkpoint.labels]
    flows = [sample.flow for sample in samples]
    assert checkpoint.context == read_run(run / "run").context
    assert checkpoint.context.ports.weight == TrainingConfig().port_weight
    tokens = encode(flows, checkpoint.features)
    onnx, reference = (load_engine(name, folder).run(tokens).logits for name in ("onnx", "torch"))
    np.testing.assert_allclose(onnx, reference, atol=1e-4)
    judged = flow_verdicts(onnx, flows, checkpoint, context_terms(checkpoint), ports=False)
    assert np.mean([v.label == s.label for v, s in zip(judged, samples, strict=True)]) > 0.8
    assert "Not evaluated" in (folder / "README.md").read_text()


def test_evaluation_calibrates_and_fills_the_card(run, features, tmp_path):
    quick = tmp_path / "run"
    tapline_train("finetune", "--features", features, "--out", quick, *SMALL, "-ep", 1)
    output = tapline_train("evaluate", "--features", features, "--run", quick, "--folds", 2, "--tuned", 0, "--int8")
    assert "trees" in output
    assert ", int8 " in output
    record = json.loads((quick / "evaluation.json").read_text())
    assert [fold["tuned"] for fold in record["figures"]["folds"]] == [True, False]
    outcome = read_outcomes(quick)[1]
    same = (outcome.int8 == outcome.logits[:, :4].argmax(axis=1)).mean()
    assert 0.8 < same <= 1
    assert record["figures"]["macro_f1_int8"] == pytest.approx(record["figures"]["macro_f1"], abs=0.2)
    assert set(record["figures"]["macro_f1_by_packets"]) == {"1", "2", "4", "8", "16", "32", "all"}
    notes = tmp_path / "notes.md"
    notes.write_text("## Data\n\nSome captures.\n")
    tapline_train("export", "--run", quick, "--out", tmp_path, "--name", "q", "--version", "1", "--notes", notes)
    checkpoint = read_checkpoint(tmp_path / "q" / "1")
    assert checkpoint.calibration.temperature == pytest.approx(record["figures"]["temperature"], abs=1e-4)
    assert checkpoint.unknown.threshold == pytest.approx(record["figures"]["threshold"], abs=1e-4)
    without = record["figures"]["without_ports"]
    assert checkpoint.context.ports.temperature == pytest.approx(without["temperature"], abs=1e-4)
    assert checkpoint.context.ports.threshold == pytest.approx(without["threshold"], abs=1e-4)
    card = (tmp_path / "q" / "1" / "README.md").read_text()
    assert f"| this model | {record['figures']['macro_f1']:.3f} (" in card
    assert "## Data\n\nSome captures." in card
    assert "0 (settings chosen here)" in card


def test_what_is_measured_is_what_is_served(run, features, tmp_path):
    record = read_run(run / "run")
    corpus = make_corpus(open_samples([features], tmp_path), 3)
    data = make_training_set(corpus, corpus.samples, corpus.rare, record.config)
    held = corpus.known()
    fold = Fold(0, data, True, held, corpus.samples.take(corpus.samples.with_label(corpus.rare)))
    outcome = measure_flows(fold, corpus, record.config, load_model(run / "run", record))
    tapline_train("export", "--run", run / "run", "--out", tmp_path, "--name", "small", "--version", "1")
    checkpoint = read_checkpoint(tmp_path / "small" / "1")
    engine, terms = load_engine("onnx", tmp_path / "small" / "1"), context_terms(checkpoint)
    flows = [sample.flow for sample in read_samples(features) if sample.label in checkpoint.labels]
    logits = engine.run(encode(flows, checkpoint.features)).logits
    for ports, measured in ((True, outcome.logits), (False, outcome.without_ports)):
        served = flow_probabilities(logits, flows, checkpoint, terms, ports=ports)
        np.testing.assert_allclose(served, label_shares(measured, 1.0, 4), atol=1e-4)


def test_what_is_measured_are_the_labels_that_were_learned(features, tmp_path):
    out = tmp_path / "run"
    tapline_train("finetune", "--features", features, "--out", out, *SMALL, "-ep", 1, "--min-flows", 6)
    assert [count.label for count in read_run(out).labels] == ["DNS", "HTTP", "TLS"]
    tapline_train("evaluate", "--features", features, "--run", out, "--folds", 2)
    figures = json.loads((out / "evaluation.json").read_text())["figures"]
    assert {each["label"] for each in figures["classes"]} == {"DNS", "HTTP", "TLS"}
    assert read_outcomes(out)[0].logits.shape[1] == 4


def test_a_run_without_ports_has_none_in_its_checkpoint(features, tmp_path):
    tapline_train("finetune", "--features", features, "--out", tmp_path / "run", *SMALL, "-ep", 1, "--ports", "off")
    assert read_run(tmp_path / "run").config.port_weight == 0
    tapline_train("evaluate", "--features", features, "--run", tmp_path / "run", "--folds", 2)
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())["figures"]
    assert figures["without_ports"] is None
    names = {model["name"] for model in figures["models"]}
    assert {"table of server ports, random ports", "trees with context, random ports"} < names
    assert "this model, random ports" not in names
    tapline_train("export", "--run", tmp_path / "run", "--out", tmp_path, "--name", "q", "--version", "1")
    context = read_checkpoint(tmp_path / "q" / "1").context
    assert (context.ports, set(context.transports)) == (None, {"tcp", "udp"})
    assert "Ports are not read" in (tmp_path / "q" / "1" / "README.md").read_text()


def test_a_run_of_before_there_was_context(run, features, tmp_path):
    old = tmp_path / "run"
    shutil.copytree(run / "run", old)
    record = json.loads((old / "run.json").read_text())
    del record["context"], record["config"]["port_weight"]
    (old / "run.json").write_text(json.dumps(record))
    arguments = ["evaluate", "--features", features, "--encoders", run / "encoders", "--run", old]
    assert "before flows had a context: run `finetune` again" in str(invoke(*arguments).exception)
    tapline_train("export", "--run", old, "--out", tmp_path, "--name", "q", "--version", "1")
    assert read_checkpoint(tmp_path / "q" / "1").context is None
    assert "Addresses and ports are not read." in (tmp_path / "q" / "1" / "README.md").read_text()


def test_evaluation_refuses_other_data_than_the_run_learned_from(run, features):
    arguments = ["evaluate", "--features", features, "--run", run / "run", "--folds", 2]
    assert "made from other features or encoders" in str(invoke(*arguments).exception)
    result = invoke(*arguments, "--encoders", features)
    assert "expected a run of pretrain" in str(result.exception)


def test_the_same_seed_gives_the_same_weights(features, tmp_path):
    corpus = make_corpus(open_samples([features], tmp_path), 3)
    config = TrainingConfig(32, 2, 1, 64, epochs=1, draws=64)
    data = make_training_set(corpus, corpus.samples, corpus.rare, config)
    network = network_of(corpus, config, background=True)
    first, second = (fit(new_model(network, 5), data, config).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lengths_in_order_lie_near_their_neighbours():
    torch.manual_seed(0)
    model = Mm4flow(Mm4flowNetwork(32, 1, 2, 32, 2))
    order_lengths(model, 0)
    table = model.ps_encoder.bert.embeddings.word_embeddings.weight.detach()
    near, far = ((table[7 + 2 * 900] - table[7 + 2 * other]).norm() for other in (902, 60))
    assert near < far


def test_masking_hides_real_tokens_only():
    tokens = torch.tensor([[2, 50, 60, 70, 3, 0]] * 500)
    masked = mask_tokens(tokens, 263, 0.2, torch.Generator().manual_seed(1))
    assert not masked.selected[:, [0, 4, 5]].any()
    assert masked.selected[:, 1:4].float().mean() == pytest.approx(0.2, abs=0.04)
    assert torch.equal(masked.tokens[~masked.selected], tokens[~masked.selected])
    assert (masked.tokens[masked.selected] == 4).float().mean() == pytest.approx(0.8, abs=0.1)


def test_a_loss_that_is_not_finite_stops_training():
    model = torch.nn.Linear(2, 1)
    trainer = Trainer(model, TrainingConfig(), 10)
    with pytest.raises(TrainingError, match="loss is nan in step 0: lower the learning rate"):
        trainer.step(model(torch.full((1, 2), torch.nan)).sum())


def test_a_failing_run_leaves_what_was_there(features, tmp_path, monkeypatch):
    out = tmp_path / "run"
    tapline_train("finetune", "--features", features, "--out", out, *SMALL, "-ep", 1)
    before = {name: (out / name).read_bytes() for name in ("model.safetensors", "run.json")}

    def bad(*_arguments, **_options):
        raise TrainingError("the loss is nan in step 3: lower the learning rate (-lr)")

    monkeypatch.setattr(Trainer, "work", bad)
    result = invoke("finetune", "--features", features, "--out", out, *SMALL, "-ep", 1)
    assert isinstance(result.exception, TrainingError)
    assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("command", ["pretrain", "pretrain-ps", "pretrain-bytes", "finetune"])
def test_a_dry_run_says_what_it_would_do_and_does_nothing(features, tmp_path, command):
    out = tmp_path / "run"
    said = tapline_train(
        command, "--features", features, "--out", out, *SMALL, "-ep", 3, "-b", 100, "--device", "cpu", "--dry-run"
    )
    assert "9 steps on 1 process(es) of cpu" in said
    assert "would train: 34 flows of 24 captures" in said
    assert not out.exists()


def test_one_encoder_is_trained_and_the_other_left_out(features, tmp_path):
    tapline_train("pretrain-ps", "--features", features, "--out", tmp_path / "ps", *SMALL, "-ep", 1)
    weights = load_file(tmp_path / "ps" / "encoders.safetensors")
    assert {name.partition(".")[0] for name in weights} == {"ps_encoder"}
    log = [json.loads(line) for line in (tmp_path / "ps" / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in log} == {"pretrain-ps"}


def test_two_feature_directories_of_one_name_are_not_mixed_up(features, tmp_path):
    result = invoke("finetune", "--features", features, "--features", features, "--out", tmp_path / "run")
    assert "two feature directories of this name" in str(result.exception)


def test_labels_in_too_few_captures_cannot_be_learned(features, tmp_path):
    with pytest.raises(TrainingError, match="lower --min-captures"):
        make_corpus(open_samples([features], tmp_path), 9)
    with pytest.raises(TrainingError, match=r"in at least 3 captures and 10 flows: .* or --min-flows"):
        make_corpus(open_samples([features], tmp_path), 3, 10)


def test_a_label_without_flows_is_named(features, tmp_path):
    corpus = make_corpus(open_samples([features], tmp_path), 3)
    some = corpus.samples.take(~corpus.samples.with_label(["NTP"]))
    with pytest.raises(TrainingError, match="label 'NTP' has no flow"):
        make_training_set(corpus, some, [], TrainingConfig())


def test_damaged_features_are_refused(features, tmp_path):
    shard = read_manifest(features).shards[0]
    for path in features.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / shard.name).write_bytes(b"no shard")
    with pytest.raises(SampleError, match="damaged"):
        list(read_samples(tmp_path))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "flow_format_version": 99}))
    with pytest.raises(SampleError, match="flow format 99"):
        list(read_samples(tmp_path))


def test_nothing_to_extract_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.pcap").write_bytes(b"not a capture, whatever its name says")
    with pytest.raises(ExtractError, match="hold no flow with payload"):
        extract(find_origins([tmp_path / "in"]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(ExtractError, match="no such file"):
        find_origins([tmp_path / "absent"])


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ExtractError, match="holds no features"):
        extract(find_origins([PROTOCOLS / "pcap"]), tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_the_command_ends_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tapline-train", "labels", "--features", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "expected extracted features" in capsys.readouterr().err


def test_a_run_is_read_back(run):
    record = read_run(run / "run")
    assert (record.config.d_model, record.config.features.content_bytes) == (32, 24)
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record
    with pytest.raises(TrainingError, match="a run of pretrain"):
        read_run(run / "encoders")


def test_labels_of_the_bundled_captures_are_found():
    assert len(read_labels(PROTOCOLS / "flows.csv", confidence=("DPI",)).captures) == 24
