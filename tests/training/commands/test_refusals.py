"""What `tapline-train` refuses before it trains: options out of range, settings that contradict the run or the data."""

import json
import shutil

import pytest

from tapline.training.data.split import SplitError
from tapline.training.evaluation import trace_folds
from tapline.training.loop.config import TrainingError
from tests.paths import DATA
from tests.training.command import invoke, tapline_train

pytestmark = pytest.mark.whole

CAPTURES = DATA / "traces"
SMALL = ["-d", "16", "-nh", "2", "-l", "1", "-f", "32", "--packets", "8", "--content-bytes", "16", "--draws", "64"]
TRACES = ["-ep", "1", "--draws", "16", "-b", "8"]


@pytest.fixture(scope="module")
def folder(features, protocols, tmp_path_factory):
    """`protocols` and `devices` with a run of each kind on them, and `two` devices of the three."""
    root = tmp_path_factory.mktemp("all")
    shutil.copytree(protocols, root / "protocols")
    tapline_train("finetune", "--features", root / "protocols", "--out", root / "flows", *SMALL, "-ep", 1)
    shutil.copytree(features, root / "devices")
    tapline_train("pretrain-ps", "--features", root / "devices", "--out", root / "encoders", *SMALL, "-ep", 1)
    encoders = ["--encoders", root / "encoders"]
    tapline_train("train-traces", "--features", root / "devices", *encoders, "--out", root / "traces", *TRACES)
    for label in ("Aria", "MAXGateway"):
        shutil.copytree(CAPTURES / label, root / "captures" / label)
    tapline_train("extract", root / "captures", "--label-from-folder", "--heads", "header", "--out", root / "two")
    return root


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """Measuring a fold of anything fails the test."""
    monkeypatch.setattr(trace_folds, "_measure", None)
    monkeypatch.setattr("tapline.training.evaluation.flow_folds.fit", None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--tuned", 5], "--tuned 5: expected one of the folds 0 to 4"),
        (["--tuned", -1], "--tuned -1: expected one of the folds 0 to 4"),
        (["--folds", 2, "--tuned", 0, "--tuned", 1], "leave one at least to be measured on"),
        (["--folds", 90], "give 21 or fewer"),
        (["--split", "split.json", "--tuned", 0], "give either --split or --tuned"),
    ],
)
def test_folds_of_flows_that_are_not_there(folder, options, why):
    arguments = ["--features", folder / "protocols", "--run", folder / "flows", *options]
    for dry in ([], ["--dry-run"]):
        result = invoke("evaluate", *arguments, *dry)
        assert isinstance(result.exception, TrainingError | SplitError)
        assert why in str(result.exception)


@pytest.mark.parametrize(
    ("command", "options", "why"),
    [
        ("train-traces", ["--window-seconds", -5], "--window-seconds"),
        ("train-traces", ["--window-seconds", 0.0001], "expected 0 or at least a millisecond"),
        ("tune-flows", ["--window-seconds", 1e9], "`float` <= 2592000.0"),
        ("train-traces", ["--lengths", 999], "--lengths"),
        ("train-traces", ["-lr", 0], "-lr"),
        ("split", ["--validation", -1], "--validation"),
    ],
)
def test_options_out_of_range(folder, tmp_path, command, options, why):
    result = invoke(command, "--features", folder / "devices", "--out", tmp_path / "new", *options)
    assert result.exit_code == 2
    assert why in " ".join(result.output.replace("│", "").split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options", [["--subject", "mac"], ["--window-seconds", 60], ["--lengths", 8], ["--content-bytes", 8]], ids=str
)
def test_what_a_run_to_start_from_has_decided(folder, tmp_path, options):
    arguments = ["--features", folder / "devices", "--start", folder / "traces", "--out", tmp_path / "new", *options]
    said = str(invoke("train-traces", *arguments).exception)
    assert said == f"{options[0]}: with --start it is as that run had it: leave it out"


@pytest.mark.parametrize("options", [["-nh", 4], ["-d", 32], ["-l", 2]], ids=str)
def test_encoders_of_other_sizes(folder, tmp_path, options):
    arguments = ["--features", folder / "protocols", "--encoders", folder / "encoders", *SMALL, *options]
    for dry in ([], ["--dry-run"]):
        result = invoke("finetune", *arguments, "--out", tmp_path / "new", *dry)
        assert str(result.exception).endswith("the encoders do not fit: give their sizes, -d 16 -nh 2 -l 1 -f 32")
    assert not (tmp_path / "new").exists()


def evaluate_traces(folder, *options, features="devices", run="traces"):
    arguments = ["--features", folder / features, "--run", folder / run, "--out", folder / "new", "--folds", 3]
    return [str(invoke("evaluate-traces", *arguments, *options, *dry).exception) for dry in ([], ["--dry-run"])]


def test_an_evaluation_starts_from_what_the_run_started_from(folder):
    start = ["--start", folder / "encoders"]
    for said, why in (
        (evaluate_traces(folder), "give --start what train-traces had as --encoders"),
        (evaluate_traces(folder, "--start", folder / "flows"), "no encoders.safetensors: expected a run of pretrain"),
        (evaluate_traces(folder, *start, features="two"), "learned other labels than these features have"),
        (evaluate_traces(folder, *start, run="flows"), "a run of finetune, expected one of trace training"),
    ):
        assert why in said[0]
        assert said[0] == said[1]
    assert not (folder / "new").exists()


def test_the_evaluation_of_another_run_is_not_put_on_the_card(folder, tmp_path, monkeypatch):
    monkeypatch.undo()
    tapline_train("train-traces", "--features", folder / "two", "--out", tmp_path / "run", *TRACES)
    arguments = ["--features", folder / "two", "--run", tmp_path / "run", "--folds", 2, "--out", tmp_path / "figures"]
    tapline_train("evaluate-traces", *arguments)
    named = ["--name", "mine", "--version", "1", "--out", tmp_path / "zoo", "--evaluation", tmp_path / "figures"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(json.dumps(record | {"labels": ["Aria", "HomeMaticPlug"]}))
    assert "give the evaluation of this run" in str(
        invoke("export-traces", "--run", tmp_path / "other", *named).exception
    )
    tapline_train("export-traces", "--run", tmp_path / "run", *named)


def test_processes_of_torchrun_start_no_processes(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["--features", folder / "protocols", "--run", folder / "flows", "--processes", 2]
    result = invoke("evaluate", *arguments)
    assert "--processes: `torchrun` has started processes already" in str(result.exception)
