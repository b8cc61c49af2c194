"""A search for settings: ordinary runs judged on validation, the test never read, killed and gone on with."""

import json
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from tapline.models.checkpoint import file_sha256
from tapline.training.data.partition import read_partition
from tapline.training.data.store import StoredFlows, open_samples
from tapline.training.flows.flow_record import read_run
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.searching.search_space import DEFAULT_SPACE, read_space
from tapline.training.searching.search_study import validation_macro_f1
from tests.paths import ROOT
from tests.training.command import invoke, tapline_train

SPACE = """
[search]
lr = { low = 1e-3, high = 1e-2, log = true }
packets = [4, 8]
draws = { low = 32, high = 40 }

[fixed]
nh = 1
l = 1
f = 16
d = 16
b = 16
ep = 2
content-bytes = 8
"""
LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def data(protocols, tmp_path_factory):
    """Options of features, a split of them, and a small space."""
    folder = tmp_path_factory.mktemp("search")
    tapline_train("split", "--features", protocols, "--out", folder / "split.json")
    (folder / "space.toml").write_text(SPACE)
    return ["--features", protocols, "--split", folder / "split.json", "--space", folder / "space.toml"]


def results(out):
    """Of each run of a search by its settings: macro-F1 on validation, and a hash of its weights."""
    found = {}
    for run in sorted((out / "trials").iterdir()):
        config = read_run(run).config
        found[config.learning_rate, config.features.payload_lengths, config.draws] = (
            validation_macro_f1(run),
            file_sha256(run / "model.safetensors"),
        )
    return found


@pytest.mark.whole
def test_trials_are_runs_and_the_best_is_told(data, tmp_path):
    said = invoke("search", *data, "--out", tmp_path / "out", "--trials", 3).stdout
    found = results(tmp_path / "out")
    assert len(found) == 3
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert (
        best["macro_f1"]
        == max(score for score, _ in found.values())
        == validation_macro_f1(tmp_path / "out" / best["run"])
    )
    told = said.splitlines()
    assert told[0].startswith(f"{best['run']}: macro-F1 {best['macro_f1']:.3f}; lr ")
    (evaluate,) = (shlex.split(line) for line in told if line.startswith("  tapline-train evaluate "))
    assert evaluate[-2:] == ["--run", str(tmp_path / "out" / best["run"])]
    (again,) = (shlex.split(line) for line in told if line.startswith("  tapline-train finetune "))
    tapline_train(*(str(tmp_path / "again") if word == "RUN" else word for word in again[1:]))
    assert read_run(tmp_path / "again").config == read_run(tmp_path / "out" / best["run"]).config
    assert validation_macro_f1(tmp_path / "again") == best["macro_f1"]
    more = tapline_train("search", *data, "--out", tmp_path / "out", "--trials", 4)
    assert len(results(tmp_path / "out")) == 4
    assert "are left" not in more
    assert set(found) < set(results(tmp_path / "out"))


@pytest.mark.whole
def test_the_part_for_the_test_is_never_read(data, tmp_path, monkeypatch):
    samples = open_samples([data[1]], tmp_path)
    test = set(np.flatnonzero(read_partition(data[3]).parts(samples) == 2).tolist())
    split, read, get = data[3].read_bytes(), set(), StoredFlows.__getitem__

    def noted(flows, index):
        if not isinstance(index, slice):
            read.add(int(flows.rows[index]))
        return get(flows, index)

    def noted_kinds(flows, *arguments):
        read.update(flows.rows.tolist())
        return kinds(flows, *arguments)

    kinds = StoredFlows.kinds
    monkeypatch.setattr(StoredFlows, "__getitem__", noted)
    monkeypatch.setattr(StoredFlows, "kinds", noted_kinds)
    for name in ("ports", "transports"):
        whole = getattr(StoredFlows, name).fget
        monkeypatch.setattr(StoredFlows, name, property(lambda f, w=whole: (read.update(f.rows.tolist()), w(f))[1]))
    tapline_train("search", *data, "--out", tmp_path / "out", "--trials", 2)
    assert len(read) > 20
    assert test
    assert read & test == set()
    assert data[3].read_bytes() == split


@pytest.mark.whole
def test_a_killed_search_goes_on_as_if_it_had_not_been(data, tmp_path):
    tapline_train("search", *data, "--out", tmp_path / "whole", "--trials", 2)
    arguments = ["search", *map(str, data), "--out", str(tmp_path / "killed"), "--trials", "2"]
    code = (
        "import os, signal\nfrom tapline.training.loop import run_state, trainer\n"
        "kept = run_state.save_state\n"
        "def save(directory, fingerprint, progress):\n"
        "    kept(directory, fingerprint, progress)\n"
        "    if directory.name == '0002' and progress.step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer.save_state = save\nfrom tapline.training.commands.tapline_train import main\nmain()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, timeout=LIMIT_SECONDS, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "trials" / "0002" / "run.json").exists()
    tapline_train(*arguments)
    assert sorted(path.name for path in (tmp_path / "killed" / "trials").iterdir()) == ["0001", "0002"]
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    best = [json.loads((tmp_path / name / "best.json").read_text()) for name in ("whole", "killed")]
    assert best[0]["settings"] == best[1]["settings"]


@pytest.mark.whole
def test_what_is_left_when_time_is_over_is_done_in_the_next_call(data, tmp_path):
    said = tapline_train("search", *data, "--out", tmp_path / "out", "--trials", 1, "--timeout", 0)
    assert "1 of 1 trials are left: repeat the command to go on" in said
    assert "no trial was finished" in said
    assert "are left" not in tapline_train("search", *data, "--out", tmp_path / "out", "--trials", 1)
    assert [path.name for path in (tmp_path / "out" / "trials").iterdir()] == ["0001"]


@pytest.mark.whole
def test_what_a_search_refuses(data, tmp_path, monkeypatch):
    out = ["--out", tmp_path / "out", "--trials", 1]
    assert "would search: 1 trials of finetune over lr, packets, draws, 0 done" in tapline_train(
        "search", *data, *out, "--dry-run"
    )
    assert not (tmp_path / "out").exists()
    tapline_train("search", *data, *out)
    for changed in (["--seed", 3], ["--min-captures", 2], ["--space", _space(tmp_path, "[search]\nd = [8, 16]")]):
        error = str(invoke("search", *data, *out, *changed).exception)
        assert "holds a search of other data, split, settings, space or seed: give another --out" in error
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").touch()
    assert "exists and holds no search" in str(invoke("search", *data, "--out", tmp_path / "other").exception)
    tapline_train("split", *data[:2], "--validation", 0, "--out", tmp_path / "none.json")
    error = invoke("search", *data[:2], "--split", tmp_path / "none.json", "--out", tmp_path / "new").exception
    assert "no part for validation, by which trials are judged" in str(error)
    monkeypatch.setitem(sys.modules, "optuna", None)
    error = invoke("search", *data, "--out", tmp_path / "new").exception
    assert "a search needs optuna: install the extra `search`" in str(error)
    assert not (tmp_path / "new").exists()


@pytest.mark.whole
def test_a_trial_that_fails_is_told_and_the_others_go_on(data, tmp_path, monkeypatch):
    from tapline.training.searching import search_study

    train, calls = search_study.finetune_run, []

    def failing(job, *arguments):
        calls.append(job.directory.name)
        if job.directory.name == "0001":
            raise TrainingError("the loss is not finite")
        return train(job, *arguments)

    monkeypatch.setattr(search_study, "finetune_run", failing)
    said = invoke("search", *data, "--out", tmp_path / "out", "--trials", 2).stdout
    assert calls == ["plan", "0001", "0002"]
    assert "trials/0001: failed: the loss is not finite" in said
    assert said.splitlines()[0].startswith("trials/0002: macro-F1 ")


def _space(folder, text):
    path = folder / "space.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("search = 3", "not a space of settings"),
        ("[search", "not a space of settings"),
        ("[search]\n[fixed]\nd = 8", "nothing to search"),
        ("[search]\nrate = [1, 2]", "no setting rate: expected some of d, nh, l"),
        ("[search]\nd = [8]\n[fixed]\nd = 8", "d is searched and fixed"),
        ("[search]\nd = [8, 8]", "d: a value stands there twice"),
        ("[search]\nd = []", "not a space of settings"),
        ("[search]\nep = [0.5]", "ep: expected whole numbers"),
        ("[search]\nlr = { low = 2, high = 1 }", "lr: expected low below high"),
        ("[search]\nlr = { low = 0, high = 1, log = true }", "lr: expected more than 0 with log"),
        ("[search]\nlr = { low = 0, high = 1 }", "lr: expected more than 0"),
        ("[search]\nd = [32, 33]\nnh = [1, 2]", "the network cannot have these sizes"),
        ("[search]\npackets = [8, 9999]", "settings of a trial: "),
    ],
)
def test_a_space_that_cannot_be_searched(tmp_path, text, why):
    with pytest.raises(TrainingError, match=why):
        read_space(_space(tmp_path, text))


def test_the_default_space_is_of_possible_settings():
    configs = [DEFAULT_SPACE.config(corner, TrainingConfig()) for corner in DEFAULT_SPACE.corners()]
    assert len({config.d_model for config in configs}) == 3
    assert read_space(None) == DEFAULT_SPACE
