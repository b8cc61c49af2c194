"""What commands say when they are done, and what they leave behind when they fail."""

import errno
import os
import re
import shutil
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from tapline.training.commands.tapline_train import main
from tapline.training.loop.config import TrainingError
from tests.paths import DATA
from tests.training.command import invoke, tapline_train

pytestmark = pytest.mark.whole

PROTOCOLS, CAPTURES = DATA / "protocols", DATA / "traces"
SMALL = ["-d", "16", "-nh", "2", "-l", "1", "-f", "32", "--packets", "8", "--content-bytes", "16", "--draws", "64"]
NAMED = ["--name", "mine", "--version", "1"]
TRACES = ["-ep", "1", "--draws", "16", "-b", "8"]


@pytest.fixture(scope="module")
def runs(protocols, features, tmp_path_factory):
    """A run of finetune and one of train-traces, with the last line that each said."""
    root = tmp_path_factory.mktemp("runs")
    flows = tapline_train("finetune", "--features", protocols, "--out", root / "flows", *SMALL, "-ep", 1)
    traces = tapline_train("train-traces", "--features", features, "--out", root / "traces", *TRACES)
    return {"export": (root / "flows", last(flows)), "export-traces": (root / "traces", last(traces))}


def last(output):
    return output.splitlines()[-1]


def test_no_bar_where_no_terminal_is_whatever_is_said_of_color(tmp_path):
    command = [sys.executable, "-m", "tapline.training", "extract", str(CAPTURES), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, env=os.environ | {"FORCE_COLOR": "1"}, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""  # notebooks set it, and keep every line
    assert done.stdout.startswith("33 flows of 9 captures")


def test_training_ends_with_what_was_learned_how_long_it_took_and_where_it_lies(protocols, runs, tmp_path):
    run, said = runs["export"]
    assert re.fullmatch(rf"4 labels and a background class, 34 flows in \d+ s: {re.escape(str(run))}", said)
    run, said = runs["export-traces"]
    assert re.fullmatch(rf"9 traces of 3 labels, \d+ flows in \d+ s: {re.escape(str(run))}", said)
    said = last(tapline_train("pretrain", "--features", protocols, "--out", tmp_path / "new", *SMALL, "-ep", 1))
    assert re.fullmatch(rf"34 flows in \d+ s: {re.escape(str(tmp_path / 'new'))}", said)


def test_split_and_calibrate_end_with_what_came_out_and_where(protocols, runs, tmp_path):
    split = tmp_path / "split.json"
    assert last(tapline_train("split", "--features", protocols, "--out", split)).endswith(f"parts by capture: {split}")
    run, _ = runs["export"]
    said = tapline_train("evaluate", "--features", protocols, "--run", run, "--folds", 2)
    assert last(said) == f"figures and report: {run / 'evaluation.json'}, {run / 'report.html'}"
    assert last(tapline_train("calibrate", "--run", run)).endswith(f" of unknown ones: {run / 'evaluation.json'}")


def test_labels_in_too_few_captures_are_marked_with_the_reason(tmp_path):
    for label, captures in (("Aria", 3), ("HomeMaticPlug", 2), ("MAXGateway", 1)):
        (tmp_path / "in" / label).mkdir(parents=True)
        for path in sorted((CAPTURES / label).iterdir())[:captures]:
            shutil.copy(path, tmp_path / "in" / label)
    tapline_train("extract", tmp_path / "in", "--label-from-folder", "--out", tmp_path / "out")
    *rows, line = tapline_train("labels", "--features", tmp_path / "out").splitlines()
    assert [re.sub(r"\t\d+", "", row, count=2) for row in rows] == [
        "Aria",
        "HomeMaticPlug\tnot learned by finetune: it needs 3 captures (--min-captures)",
        "MAXGateway\tnot learned: a single capture; train-traces needs 2, finetune 3 (--min-captures)",
    ]
    assert line == "label, captures, flows of 3 labels: finetune learns 1 of them, train-traces 2"


def test_labels_need_labels(tmp_path):
    tapline_train("extract", PROTOCOLS / "pcap" / "tk.pcap", "--out", tmp_path / "unlabelled")
    result = invoke("labels", "--features", tmp_path / "unlabelled")
    assert "no flow has a label: extract with --labels or --label-from-folder" in str(result.exception)


def test_a_label_asked_for_that_no_flow_has_is_said(tmp_path):
    said = tapline_train("extract", CAPTURES / "Aria", "--label-from-folder", "--out", tmp_path / "out")
    assert "note: no flow has a label: --label-from-folder takes the first folder below the one given" in said
    said = tapline_train("extract", CAPTURES / "Aria", "--labels", PROTOCOLS / "flows.csv", "--out", tmp_path / "out")
    assert "note: no flow has a label: none of these flows is in flows.csv" in said
    assert "note:" not in tapline_train("extract", CAPTURES / "Aria", "--out", tmp_path / "out")


def test_an_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("tapline.training.commands.data_commands.find_origins", interrupt)
    monkeypatch.setattr("sys.argv", ["tapline-train", "extract", str(CAPTURES), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "tapline-train: interrupted: repeat the command" in capsys.readouterr().err


def full(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unwritable(*_arguments, **_options):
    raise SafetensorError("Error while serializing: No space left on device")


@pytest.mark.parametrize("command", ["export", "export-traces"])
@pytest.mark.parametrize("folder", ["", "repository/of"])
def test_a_failed_export_leaves_nothing(runs, tmp_path, monkeypatch, command, folder):
    run, _ = runs[command]
    out = tmp_path / "root" / folder
    (tmp_path / "root").mkdir()

    def export(of=run, *more):
        return invoke(command, "--run", of, "--out", out, *NAMED, *more).exception

    assert isinstance(export(tmp_path / "absent"), TrainingError)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_bytes((run / "run.json").read_bytes())
    assert "missing or damaged weights" in str(export(broken))
    assert "no readable checkpoint" in str(export(run, "--name", "No Name"))
    with monkeypatch.context() as patched:
        patched.setattr("tapline.training.export.checkpoint_export.onnx.save_model", full)
        assert export().errno == errno.ENOSPC
    with monkeypatch.context() as patched:
        patched.setattr("tapline.training.export.checkpoint_export.save_file", unwritable)
        assert "make room and run it again" in str(export())
    assert list((tmp_path / "root").iterdir()) == []
    assert export() is None
    assert (out / "mine" / "1" / "checkpoint.json").is_file()


def test_an_export_with_an_unreadable_evaluation_leaves_nothing(runs, tmp_path):
    run, _ = runs["export-traces"]
    (tmp_path / "evaluation.json").write_text("{}")
    arguments = ["export-traces", "--run", run, "--out", tmp_path / "new", *NAMED, "--evaluation"]
    assert "evaluate again" in str(invoke(*arguments, tmp_path).exception)
    assert "evaluate first" in str(invoke(*arguments, tmp_path / "absent").exception)
    assert not (tmp_path / "new").exists()
