"""`--dry-run` of every command that writes: it reads and checks, says what would be done, and changes no file."""

import json

import pytest
import torch
import typer
from safetensors.torch import load_file

from tapline.training.commands.tapline_train import app
from tapline.training.loop.config import TrainingError
from tests.paths import DATA
from tests.training.command import invoke, tapline_train
from tests.training.evaluation.test_suspicion import evaluate_suspicion, make_captures

pytestmark = pytest.mark.whole

PROTOCOLS, TRACES = DATA / "protocols", DATA / "traces"
SMALL = ["-d", "16", "-nh", "2", "-l", "1", "-f", "32", "--packets", "8", "--content-bytes", "16", "--draws", "64"]
QUICK = ["--draws", "32", "-b", "16", "-ep", "1"]
TAUGHT = ["--steps", 20, "--copies", 1, "--agreement", "0.5"]
READ_ONLY = {"labels", "card", "compare"}
LETTERS = {"-d", "-nh", "-l", "-f", "-b", "-ep", "-ev", "-sv", "-lr"}


def commands():
    """Every command by its words."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        parts = getattr(command, "commands", None)
        found |= {(name, part): each for part, each in parts.items()} if parts else {(name,): command}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of everything, that every command can be tried beside."""
    root = tmp_path_factory.mktemp("all")
    table = PROTOCOLS / "flows.csv"
    tapline_train("extract", PROTOCOLS / "pcap", "--labels", table, "--confidence", "DPI", "--out", root / "features")
    tapline_train("split", "--features", root / "features", "--out", root / "split.json")
    tapline_train("finetune", "--features", root / "features", "--out", root / "run", *SMALL, "-ep", 1)
    tapline_train("evaluate", "--features", root / "features", "--run", root / "run", "--folds", 2)
    tapline_train("export", "--run", root / "run", "--out", root / "served", "--name", "mine", "--version", "1")
    tapline_train("extract", TRACES, "--label-from-folder", "--heads", "header", "--out", root / "devices")
    features = ["--features", root / "devices"]
    small = ["-d", "16", "-nh", "2", "-l", "1", "--max-tokens", "96"]
    tapline_train("pretrain-packets", *features, "--out", root / "packets", *small, *QUICK)
    tapline_train("tune-flows", *features, "--start", root / "packets", "--out", root / "flows", *QUICK)
    tapline_train("train-traces", *features, "--start", root / "flows", "--out", root / "traces", *QUICK)
    make_captures(root / "suspicion")
    sizes = {"d_model": 64, "n_layer": 2, "n_head": 4, "dim_ff": 128}
    (root / "mm4flow.json").write_text(json.dumps(sizes))
    reference = json.loads((DATA / "tracegram" / "tracegram_flows.json").read_text())
    (root / "tracegram.json").write_text(json.dumps(reference["encoder_config"]))
    weights = load_file(DATA / "tracegram" / "tracegram_weights.safetensors")
    for part in ("encoder", "trace"):
        named = {n.removeprefix(f"{part}."): value for n, value in weights.items() if n.startswith(f"{part}.")}
        torch.save(named, root / f"{part}.pt")
    return root


def arguments_of(root):
    """For each command what it is given, and what it then says it would do."""
    features, devices = ["--features", root / "features"], ["--features", root / "devices"]
    named = ["--name", "mine", "--version", "1"]
    imported = ["--labels", "a,b,c,d,e", "--out", root / "new"]
    weights = DATA / "mm4flow" / "mm4flow_weights.safetensors"
    return {
        ("extract",): ([TRACES, "--label-from-folder", "--out", root / "new"], "9 captures or logs, 0."),
        ("split",): ([*features, "--out", root / "new.json"], "flows by capture"),
        **{
            (name,): ([*features, "--out", root / "new", *SMALL, "-b", 32, "-ep", 3], "6 steps on 1 process(es)")
            for name in ("pretrain", "pretrain-ps", "pretrain-bytes", "finetune")
        },
        ("evaluate",): ([*features, "--run", root / "run", "--folds", 2], "2 folds of captures, 4 steps"),
        ("search",): (
            [*features, "--split", root / "split.json", "--out", root / "new", "--trials", 3],
            "3 trials of finetune over lr, b, d, l, packets, content-bytes, 0 done",
        ),
        ("calibrate",): (["--run", root / "run", "--false-rejection", "0.1"], "would calibrate: temperature"),
        ("export",): (["--run", root / "run", "--out", root / "new", *named], "mine 1, 4 labels, 4 files"),
        ("distil",): (
            [
                *features,
                "--checkpoint",
                root / "served" / "mine" / "1",
                "--out",
                root / "new",
                "--version",
                "2",
                *TAUGHT,
            ],
            "student: from a confidence of",
        ),
        ("pretrain-packets",): ([*devices, "--out", root / "new", *QUICK], "2 steps on 1 process(es)"),
        ("tune-flows",): ([*devices, "--start", root / "packets", "--out", root / "new", *QUICK], "9 traces of 3"),
        ("train-traces",): ([*devices, "--start", root / "flows", "--out", root / "new", *QUICK], "9 traces of 3"),
        ("evaluate-traces",): (
            [*devices, "--run", root / "traces", "--out", root / "new", "--folds", 3],
            "9 of 9 folds to train",
        ),
        ("evaluate-suspicion",): (
            evaluate_suspicion(root / "suspicion", root / "suspicion" / "home", root / "suspicion" / "office")[1:],
            "6 traces of 2 labels, 1 traces of labels never learned, 4 traces of 2 sources, 4 models to train",
        ),
        ("export-traces",): (["--run", root / "traces", "--out", root / "new", *named], "mine 1, 3 labels, 5 files"),
        ("import", "mm4flow"): (["--weights", weights, "--config", root / "mm4flow.json", *imported], "5 labels"),
        ("import", "tracegram"): (
            [
                *("--encoder", root / "encoder.pt", "--trace", root / "trace.pt"),
                *("--config", root / "tracegram.json", *imported),
            ],
            "5 labels",
        ),
    }


def tree(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_every_command_that_writes_can_be_tried():
    without = {name for name, command in commands().items() if "--dry-run" not in options_of(command)}
    assert without == {(name,) for name in READ_ONLY}


def options_of(command):
    return {option: parameter for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", [name for name in commands() if name[0] not in READ_ONLY], ids=" ".join)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(folder, name):
    arguments, expected = arguments_of(folder)[name]
    before = tree(folder)
    result = invoke(*name, *arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    said = result.stdout  # on standard error there is what it does meanwhile
    assert expected in said
    first, *rest = said.splitlines()
    assert first.startswith("would ")
    assert any(line.startswith(f"would write: {folder}") for line in rest)
    assert tree(folder) == before


def test_published_letters_are_there_and_said_what_they_are():
    for name in ("pretrain", "pretrain-ps", "pretrain-bytes", "finetune"):
        options = options_of(commands()[(name,)])
        assert options.keys() >= LETTERS
        assert all(options[letter].help for letter in LETTERS)


def test_every_option_is_explained():
    for command in commands().values():
        assert command.help
        assert [p.name for p in command.params if not p.help] == []


def test_the_published_size_of_the_flow_encoder_can_be_asked_for(folder):
    sizes = ["-d", 512, "-nh", 12, "-l", 2, "--local-heads", 8, "--dim-head", 256, "--emb-dim", 256]
    arguments = ["--features", folder / "devices", "--out", folder / "new", *QUICK, *sizes]
    said = tapline_train("pretrain-packets", *arguments, "--dry-run")
    assert "2 steps" in said
    blocks = 2 * (4 * 512 * 12 * 256 + 2 * 4 * 512 * 512)  # attention and feed-forward of two layers
    parameters = int(said.split(" parameters")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert blocks < parameters < 1.25 * blocks


def test_what_would_be_replaced_is_said(folder):
    said = tapline_train("finetune", "--features", folder / "features", "--out", folder / "run", *SMALL, "--dry-run")
    assert f"note: the finished run in {folder / 'run'} is replaced" in said
    said = tapline_train("extract", TRACES, "--out", folder / "devices", "--dry-run")
    assert f"note: the features in {folder / 'devices'} are replaced" in said


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_directory_of_something_else_is_refused(folder, tmp_path, dry_run):
    features = ["--features", folder / "features"]
    before = tree(folder)
    for command in ("pretrain", "finetune"):
        for out, why in ((folder, "exists and holds no run"), (folder / "packets", "holds a run of pretrain-packets")):
            result = invoke(command, *features, "--out", out, *SMALL, *dry_run)
            assert isinstance(result.exception, TrainingError)
            assert why in str(result.exception)
    result = invoke("tune-flows", "--features", folder / "devices", "--out", folder / "packets", *QUICK, *dry_run)
    assert "holds a run of pretrain-packets" in str(result.exception)
    assert tree(folder) == before


def test_what_would_fail_is_said_without_training(folder, tmp_path):
    features = ["--features", folder / "features"]
    result = invoke("finetune", *features, "--out", tmp_path / "run", "--min-captures", 30, "--dry-run")
    assert "expected 2 or more" in str(result.exception)
    start = ["--start", folder / "flows"]
    result = invoke("train-traces", *features, *start, "--out", tmp_path / "traces", "--dry-run")
    assert "no packet heads" in str(result.exception)
    result = invoke("evaluate", *features, "--run", folder / "run", "--encoders", folder / "run", "--dry-run")
    assert "expected a run of pretrain" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "options", "why"),
    [
        ("finetune", ["-d", 17], "d_model 17 is not a multiple of 2 heads"),
        ("pretrain", ["-nh", 3], "d_model 16 is not a multiple of 3 heads"),
        ("finetune", ["-nh", 0], "Invalid value for '-nh'"),
        ("finetune", ["-lr", -1], "Invalid value for '-lr'"),
        ("finetune", ["--packets", 255], "Invalid value for '--packets'"),
        ("pretrain-packets", ["-nh", 32, "-d", 16], "expected `int` >= 1 - at `$.dim_head`"),
        ("pretrain-packets", ["-d", 18], "emb_dim must be a multiple of decoder_heads"),
        ("pretrain-packets", ["--max-tokens", 513], "Invalid value for '--max-tokens'"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(folder, tmp_path, command, options, why):
    small = SMALL if command != "pretrain-packets" else []
    features = "devices" if command == "pretrain-packets" else "features"
    result = invoke(command, "--features", folder / features, "--out", tmp_path / "run", *small, *options)
    if result.exit_code == 2:
        assert why.lower() in " ".join(result.output.replace("│", "").split()).lower()
    else:
        assert isinstance(result.exception, TrainingError)
        assert why in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_traces_are_trained_by_one_process(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    start = ["--start", folder / "flows"]
    result = invoke("train-traces", "--features", folder / "devices", *start, "--out", tmp_path / "traces", *QUICK)
    assert "train-traces runs in one process" in str(result.exception)
