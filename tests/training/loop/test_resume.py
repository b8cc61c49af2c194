"""A run that was killed goes on as if it had not been; two processes learn what one learns; full disks and NaN."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tapline.training.commands.tapline_train import app
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.run_state import STATE, load_state
from tapline.training.loop.trainer import RunFiles, Stage, Trainer, Work, learning_rate, run_stage
from tests.paths import ROOT

pytestmark = pytest.mark.whole

LIMIT_SECONDS = 300
PROTOCOLS = ROOT / "tests" / "data" / "protocols"
SMALL = [
    *("-d", "16", "-nh", "2", "-l", "1", "-f", "32", "--packets", "8", "--content-bytes", "16"),
    *("--draws", "128", "-b", "16", "-lr", "5e-3"),
]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "protocols"
    arguments = [
        "extract",
        PROTOCOLS / "pcap",
        "--labels",
        PROTOCOLS / "flows.csv",
        "--confidence",
        "DPI",
        "--out",
        out,
    ]
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0
    return out


def command(stage, features, out, *more):
    return [
        sys.executable,
        "-m",
        "tapline.training",
        stage,
        "--features",
        str(features),
        "--out",
        str(out),
        *SMALL,
        *more,
    ]


def run(arguments, **options):
    done = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done


def here(arguments):
    """Run a command in this process: starting one costs more than the training."""
    done = CliRunner().invoke(app, arguments[3:])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {name: value for name, value in line.items() if not name.endswith("_per_second") and name != "input_wait_share"}
        for line in lines
        if line["kind"] != "start"
    ]
    assert len(timeless) == len({(line["stage"], line["kind"], line["step"]) for line in timeless})
    return timeless


def weights(directory):
    return load_file(directory / "model.safetensors")


def kill_in_the_middle(arguments, directory):
    """Start a run and SIGKILL it once its state is there, which is before it ends."""
    code = (
        "import os, signal, sys\nfrom tapline.training.loop import run_state, trainer\n"
        "kept = run_state.save_state\n"
        "def save(directory, fingerprint, progress):\n"
        "    kept(directory, fingerprint, progress)\n"
        f"    if (progress.stage, progress.step) == {('finetune', 12)!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer.save_state = save\nfrom tapline.training.commands.tapline_train import main\nmain()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments[3:]], cwd=ROOT, timeout=LIMIT_SECONDS, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (directory / STATE).is_file()


def test_a_killed_run_goes_on_with_the_same_losses(features, tmp_path):
    more = ["-ep", "3", "--frozen-epochs", "1", "-sv", "2", "--accumulate", "2"]
    whole, broken = (command("finetune", features, tmp_path / name, *more) for name in ("whole", "broken"))
    here(whole)
    kill_in_the_middle(broken, tmp_path / "broken")
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    resumed = here(broken)
    assert "from step 12 of an interrupted run" in " ".join(resumed.output.split())
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "broken" / STATE).exists()


def test_other_settings_do_not_go_on_with_an_unfinished_run(features, tmp_path):
    (tmp_path / "run").mkdir()
    torch.save({"fingerprint": "of another", "stage": "finetune", "step": 3, "tensors": {}}, tmp_path / "run" / STATE)
    arguments = [*command("finetune", features, tmp_path / "run", "-ep", "1")[3:]]
    result = CliRunner().invoke(app, arguments)
    assert "unfinished run with other settings" in str(result.exception)
    assert CliRunner().invoke(app, [*arguments, "--restart"]).exit_code == 0


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / STATE).write_bytes(b"half a state")
    with pytest.raises(TrainingError, match="damaged: begin the run again with --restart"):
        load_state(tmp_path, "any")


@pytest.mark.parametrize(
    ("stage", "more", "file"),
    [("pretrain", [], "encoders.safetensors"), ("finetune", ["--frozen-epochs", "1"], "model.safetensors")],
)
def test_two_processes_learn_what_one_learns(features, tmp_path, stage, more, file):
    more = ["-ep", "2", "-b", "15", *more]  # 8 and 7 flows of each batch
    here(command(stage, features, tmp_path / "alone", *more))
    both = command(stage, features, tmp_path / "both", *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run([*launcher, *both[1:]], env=environment)
    first, second = (
        [line["loss"] for line in losses(tmp_path / name) if line["kind"] in {"step", "epoch"}]
        for name in ("alone", "both")
    )
    np.testing.assert_allclose(second, first, rtol=2e-4)
    first, second = (load_file(tmp_path / name / file) for name in ("alone", "both"))
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    moved = max(float(value.abs().max()) for value in first.values())
    assert apart < 2e-3 < moved


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))


def line_stage(model, values):
    def works(_):
        for value in values:
            yield Work(1, 1, 1, lambda _, value=value: (model.weight * value).sum())

    return Stage("line", works, lambda model: model.train())


def test_a_loss_that_is_not_a_number_leaves_the_last_good_state(tmp_path):
    config = TrainingConfig(draws=4, batch_flows=1, epochs=1, saves=4)
    files = RunFiles(tmp_path, "same")
    model = Line()
    with pytest.raises(TrainingError, match="loss is nan in step 2"):
        run_stage(Trainer(model, config, 4), line_stage(model, [1.0, 2.0, float("nan"), 1.0]), config, 1, files)
    assert load_state(tmp_path, "same").step == 2
    again = Line()
    mean = run_stage(Trainer(again, config, 4), line_stage(again, [1.0, 2.0, 3.0, 1.0]), config, 1, files)
    assert torch.isfinite(mean.weight).all()
    assert load_state(tmp_path, "same").step == 4


def test_parts_of_a_batch_add_up_to_it():
    config = TrainingConfig()
    values = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])
    taken = []
    for parts in (1, 2, 3):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        trainer = Trainer(model, config, 10)
        work = Work(3, 3, 3, lambda rows, model=model: (model(values[torch.from_numpy(rows)]) ** 2).sum() / 3)
        taken.append((trainer.work(work, parts), trainer.gradient_norm, model.weight.detach()))
    for loss, norm, weight in taken[1:]:
        assert loss == pytest.approx(taken[0][0])
        assert norm == pytest.approx(taken[0][1])
        torch.testing.assert_close(weight, taken[0][2])


@pytest.mark.parametrize(("clip", "length"), [(1.0, 1.0), (0.25, 0.25), (1e6, 3000.0)])
def test_long_gradients_are_scaled_down(clip, length):
    model = torch.nn.Linear(3, 1, bias=False)
    trainer = Trainer(model, TrainingConfig(clip_norm=clip), 10)
    trainer.step((model.weight * torch.tensor([[1000.0, -2000.0, 2000.0]])).sum())
    assert float(model.weight.grad.norm()) == pytest.approx(length, rel=1e-4)
    assert trainer.gradient_norm == pytest.approx(3000.0)


def test_the_learning_rate_warms_up_and_decays_to_nothing():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates.index(max(rates)) == 99
    assert max(rates) == pytest.approx(0.976, abs=0.01)
    assert rates[500] == pytest.approx(0.5)
    assert learning_rate(1000, 1000, 1.0) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_ends_the_run_in_one_sentence_and_keeps_what_was_there(features, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no permission to mount")
    try:
        out = disk / "run"
        here(command("finetune", features, out, "-ep", "1"))
        kept = (out / "model.safetensors").read_bytes()
        done = subprocess.run(
            command("finetune", features, out, "-ep", "1", "-d", "160", "-f", "640"),
            cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        (ending,) = (line for line in done.stderr.splitlines() if line.startswith("tapline-train: "))
        assert ending.endswith("make room and run it again")
        assert "Traceback" not in done.stderr
        assert "cannot save the state" in ending or "No space left" in ending
        assert (out / "model.safetensors").read_bytes() == kept
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    finally:
        subprocess.run(["umount", disk], check=True)
