"""The command: every check for what settings ask, bounded in time, with what to do and an exit status."""

import json
import socket
import threading

import pytest

from tapline.service.doctor import model_checks
from tapline.service.doctor.doctor import Sensor, bounded, checks
from tapline.service.doctor.finding import Finding
from tapline.service.doctor.model_checks import Checkpoints, Gpu, OnnxRuntime
from tapline.service.doctor.output_checks import output_checks
from tapline.service.engines.engine import GPU_PROVIDER
from tapline.service.settings import Settings
from tests.service.command.cli_runner import tapline


def only(check):
    [found] = check.run()
    return found


def test_a_machine_that_is_well(checkpoint_dir, tmp_path):
    result = tapline(
        "doctor", "--checkpoint", checkpoint_dir, "--traces", "none", "--data-dir", tmp_path, "--port", "0",
        "--jobs-mb", "16", "--max-uploads", "1", "--format", "json",
    )  # fmt: skip
    told = json.loads(result.stdout)
    by_name = {entry["what"]: entry for entry in told["findings"]}
    assert (result.returncode, told["problems"]) == (0, 0), told
    assert by_name["checkpoint random"]["found"] == "version 1 loads, computed by CPUExecutionProvider"
    assert by_name["capture rights"]["outcome"] == "not applicable"
    assert {entry["outcome"] for entry in told["findings"]} <= {"ok", "warning", "not applicable"}
    assert all(entry["advice"] for entry in told["findings"] if entry["outcome"] in ("warning", "problem"))


def test_what_is_wrong_is_told_in_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = tapline(
        "doctor", "--checkpoint", tmp_path, "--interface", "nothere0", "--port", "0", "--data-dir", tmp_path
    )
    assert result.returncode == 1
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 80
    text = " ".join(result.stdout.split())
    assert "problem interface nothere0: there is none of this name > Name one of: " in text
    assert "problem Zeek: no zeek on PATH > " in text
    assert "problem checkpoint: " in text
    assert "3 problems, " in text


def test_a_configuration_that_is_refused_is_no_machine(tmp_path):
    result = tapline("doctor", "--port", "99999")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--port: expected at most" in result.stderr


def test_a_damaged_checkpoint_is_a_problem(checkpoint_dir, tmp_path):
    import shutil

    shutil.copytree(checkpoint_dir, tmp_path / "random" / "1")
    (tmp_path / "random" / "1" / "model.onnx").write_bytes(b"damaged")
    found = only(Checkpoints(Settings(checkpoint=tmp_path / "random" / "1", traces=["none"])))
    assert (found.what, found.outcome) == ("checkpoint random", "problem")
    assert "model.onnx" in found.found
    missing = only(Checkpoints(Settings(model="no-such-model")))
    assert (missing.outcome, "no model no-such-model here" in missing.found) == ("problem", True)


@pytest.mark.parametrize(
    ("installed", "offered", "engine", "outcome", "said"),
    [
        ({"onnxruntime": "1.31.1"}, ["CPUExecutionProvider"], "onnx", "ok", "onnxruntime 1.31.1, built for CPU"),
        ({"onnxruntime": "1", "onnxruntime-gpu": "1"}, [], "onnx", "problem", "both installed"),
        ({}, [], "onnx", "problem", "none is installed"),
        ({}, [], "torch", "not applicable", "needs none"),
        ({"onnxruntime-gpu": "1"}, [], "onnx", "problem", "cannot be loaded"),
    ],
)
def test_builds_of_onnx_runtime(monkeypatch, installed, offered, engine, outcome, said):
    monkeypatch.setattr(model_checks, "installed_runtimes", lambda: installed)
    monkeypatch.setattr(model_checks, "providers", lambda: offered)
    found = only(OnnxRuntime(engine))
    assert (found.outcome, said in found.found) == (outcome, True)
    assert bool(found.advice) == (outcome == "problem")


@pytest.mark.parametrize(
    ("gpus", "offered", "outcome"),
    [
        (0, ["CPUExecutionProvider"], "not applicable"),
        (0, [GPU_PROVIDER], "warning"),
        (2, ["CPUExecutionProvider"], "warning"),
        (2, [GPU_PROVIDER], "ok"),
    ],
)
def test_gpus(monkeypatch, gpus, offered, outcome):
    from tapline.service.engines import providers

    for module in (model_checks, providers):
        monkeypatch.setattr(module, "count_drivers_gpus", lambda: gpus)
        monkeypatch.setattr(module, "providers", lambda: offered)
    found = only(Gpu("onnx"))
    assert found.outcome == outcome
    assert bool(found.advice) == (outcome == "warning")


def test_a_sensor_that_is_away():
    with socket.create_server(("127.0.0.1", 0)) as bus:
        url = f"ws://user:pw@127.0.0.1:{bus.getsockname()[1]}"
        found = only(Sensor(url))
        assert (found.outcome, "pw" in found.what) == ("ok", False)
    away = only(Sensor(url))
    assert (away.outcome, "connection refused" in away.found) == ("problem", True)


def test_outputs_are_looked_at_as_a_service_does(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        there, udp = output_checks(
            [f"syslog+tcp://127.0.0.1:{port}", f"syslog+udp://127.0.0.1:{port}", f"eve:{tmp_path / 'eve.json'}"]
        )
        found = only(udp)
        assert [only(there).outcome, found.outcome, "UDP says no more" in found.found] == ["ok", "ok", True]
    assert not (tmp_path / "eve.json").exists()
    away, secret = output_checks(
        [f"http://127.0.0.1:{port}/hook", f"https://localhost:{port}/x?secret_file={tmp_path / 'none'}"]
    )
    assert (only(away).outcome, "refused" in only(away).found) == ("problem", True)
    assert (only(secret).outcome, "secret_file" in only(secret).found) == ("problem", True)


def test_a_check_that_hangs_or_breaks_costs_itself_alone():
    class Hanging:
        what = "hanging"
        ended = threading.Event()

        def run(self):
            yield Finding("first", "ok", "found")
            self.ended.wait(60)

    class Broken:
        what = "broken"

        def run(self):
            yield Finding("first", "ok", "found")
            raise ValueError("odd")

    hanging = Hanging()
    found = list(bounded(hanging, 0.2))
    hanging.ended.set()
    assert [(entry.what, entry.outcome) for entry in found] == [("first", "ok"), ("hanging", "problem")]
    assert "no answer within 0.2 seconds" in found[1].found
    found = list(bounded(Broken(), 10))
    assert [(entry.what, entry.outcome) for entry in found] == [("first", "ok"), ("broken", "problem")]
    assert "the check broke: ValueError" in found[1].found


def test_every_kind_of_check_is_asked():
    names = {
        check.what
        for check in checks(Settings(interface=["lo"], zeek=["ws://127.0.0.1:1"], output=["syslog+tcp://127.0.0.1:1"]))
    }
    assert names == {
        "Python", "ONNX Runtime", "GPU", "checkpoint", "Zeek", "Zeek package", "capture rights", "interface", "MTU",
        "offloads", "sensor", "output", "port", "disk", "memory and cores", "clock",
    }  # fmt: skip
