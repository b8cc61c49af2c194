"""Checkpoints of strangers: whatever one does, there is a sentence in time, and nothing else happens."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file, save_file

from tapline.models.checkpoint import CheckpointError
from tapline.service.api.app import create_app
from tapline.service.inference.repository import ZOO
from tapline.service.inference.trial import try_out
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.conftest import make_flows, make_trace_checkpoint
from tests.paths import ROOT
from tests.service.command.cli_runner import CODE, tapline
from tests.service.command.test_cli import CAPTURE
from tests.service.inference import hostile

pytestmark = [pytest.mark.slow, pytest.mark.whole]

SECONDS = 120
"""More than any trial takes that is to end by itself."""


@pytest.fixture
def flows_dir(checkpoint_dir, tmp_path):
    return shutil.copytree(checkpoint_dir, tmp_path / "random" / "1")


@pytest.fixture(scope="module")
def traces_source(tmp_path_factory):
    return make_trace_checkpoint(tmp_path_factory.mktemp("source") / "random-tracegram" / "1", int8=True)


@pytest.fixture
def traces_dir(traces_source, tmp_path):
    return shutil.copytree(traces_source, tmp_path / "random-tracegram" / "1")


def refused(directory, engine="onnx", precision="float32", seconds=SECONDS):
    """The sentence with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as found:
        try_out(directory, engine=engine, precision=precision, seconds=seconds)
    message = str(found.value)
    assert str(directory) in message
    assert "\n" not in message
    assert len(message) < 400
    return message


GRAPHS = [
    (hostile.nan_weights, "gives NaN or infinity for an ordinary flow"),
    (hostile.rename_output, "expected an output"),
    (hostile.endless_loop, "it has loops or branches, expected a plain graph"),
    (hostile.tens_of_gigabytes, "failed on a batch|the engine died of it|needs more memory|refuses it"),
    (hostile.external("beside.bin"), "its weights are in another file"),
    (hostile.external("../../beside.bin"), "its weights are in another file"),
]


def test_a_number_that_is_none_for_a_single_length_is_found(tmp_path):
    directory = tmp_path / "flow-protocols" / "5"  # it reads the first 16 lengths of a flow, and 32 bytes each way
    shutil.copytree(ZOO / "flow-protocols" / "5", directory)
    hostile.change_graph(directory, "model.onnx", hostile.nan_for_one_length)
    assert "gives NaN or infinity for an ordinary flow" in refused(directory)


@pytest.mark.parametrize(("change", "message"), GRAPHS)
def test_flow_graphs(flows_dir, change, message):
    (flows_dir / "beside.bin").write_bytes(bytes(1 << 20))
    hostile.change_graph(flows_dir, "model.onnx", change)
    assert re.search(message, refused(flows_dir))


@pytest.mark.parametrize("name", ["trace.onnx", "encoder.onnx", "encoder.int8.onnx"])
@pytest.mark.parametrize(("change", "message"), [GRAPHS[0], GRAPHS[1], GRAPHS[2], GRAPHS[4]])
def test_trace_graphs(traces_dir, name, change, message):
    hostile.change_graph(traces_dir, name, change)
    found = refused(traces_dir, precision="int8" if "int8" in name else "float32")
    assert re.search(message, found)


@pytest.mark.parametrize(
    ("change", "message"),
    [(hostile.one_row, r"expected logits as float32 \[\d+, 3\], got float32 \[1, 3\]"),
     (hostile.one_class_less, "expected logits as float32|failed on a batch|refuses it")],
)  # fmt: skip
def test_outputs_of_other_shapes(flows_dir, change, message):
    hostile.change_graph(flows_dir, "model.onnx", change)
    assert re.search(message, refused(flows_dir))


def test_a_graph_that_takes_hours_ends_with_the_trial(flows_dir):
    hostile.change_graph(flows_dir, "model.onnx", hostile.hours_of_products)
    assert "took longer than 4 seconds: give another checkpoint" in refused(flows_dir, seconds=4)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_files_that_are_not_what_they_should_be(flows_dir, tmp_path, engine):
    path = flows_dir / {"onnx": "model.onnx", "torch": "model.safetensors"}[engine]
    content = path.read_bytes()
    outside = tmp_path / "outside"
    outside.write_bytes(content)
    path.unlink()
    path.symlink_to(outside)
    assert "a link out of the checkpoint's directory" in refused(flows_dir, engine)
    path.unlink()
    os.mkfifo(path)
    assert "expected a plain file" in refused(flows_dir, engine)
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    hostile.record(flows_dir, path.name)
    assert "export it again" in refused(flows_dir, engine)
    path.write_bytes(b"ORTM" * 1000)
    hostile.record(flows_dir, path.name)
    assert "export it again" in refused(flows_dir, engine)


def test_weights_that_are_no_numbers_are_refused_by_torch(flows_dir):
    weights = load_file(flows_dir / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: np.full_like(weights[name], np.nan)}, flows_dir / "model.safetensors")
    hostile.record(flows_dir, "model.safetensors")
    assert f"got NaN or infinity in ['{name}']" in refused(flows_dir, "torch")


def test_sizes_that_the_files_cannot_hold_are_refused(flows_dir):
    network = {"d_model": 65536, "n_layer": 65536, "n_head": 2, "dim_ff": 65536, "n_class": 3}
    hostile.edit(flows_dir, network=network)
    assert "weights or more in files of" in refused(flows_dir, "torch")


def test_a_trial_imports_nothing_from_the_current_directory(checkpoint_dir, tmp_path, monkeypatch):
    for name in ("tapline", "models", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close(); raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    try_out(checkpoint_dir, engine="onnx", seconds=SECONDS)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("change", [hostile.nan_weights, hostile.rename_output, hostile.endless_loop])
def test_a_service_refuses_and_goes_on(tmp_path, checkpoint_dir, traces_source, change):
    bad = shutil.copytree(checkpoint_dir, tmp_path / "random" / "2")
    hostile.edit(bad, version="2")
    hostile.change_graph(bad, "model.onnx", change)
    traces = shutil.copytree(traces_source, tmp_path / "random-tracegram" / "2")
    hostile.edit(traces, version="2")
    hostile.change_graph(traces, "trace.onnx", change)
    shutil.copytree(checkpoint_dir, tmp_path / "random" / "1")
    shutil.copytree(traces_source, tmp_path / "random-tracegram" / "1")
    settings = Settings(
        repository=tmp_path, checkpoint=tmp_path / "random" / "1",
        traces=[str(tmp_path / "random-tracegram" / "1")], model_trial_seconds=SECONDS,
    )  # fmt: skip
    service = Service(settings)
    service.models.repository.pinned.clear()
    with TestClient(create_app(service), base_url="http://127.0.0.1:8000") as client:
        for name in ("random", "random-tracegram"):
            answer = client.post(f"/v1/models/{name}/load")
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_checkpoint")
        assert client.post("/v1/models/random/load?version=1").status_code == 200  # the next load is not held up
        assert client.get("/readyz").status_code == 200
        (outcome,) = client.portal.call(service.batcher.classify, make_flows(1))
    assert outcome.verdict.version == "1"


def test_the_command_line_says_a_sentence(flows_dir):
    hostile.change_graph(flows_dir, "model.onnx", hostile.endless_loop)
    result = tapline("classify", CAPTURE, "--checkpoint", flows_dir)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "it has loops or branches" in result.stderr


def test_a_service_stops_while_a_trial_goes_on(flows_dir, tmp_path):
    shutil.copytree(flows_dir, tmp_path / "random" / "2")
    hostile.edit(tmp_path / "random" / "2", version="2")
    hostile.change_graph(tmp_path / "random" / "2", "model.onnx", hostile.hours_of_products)
    arguments = [
        "serve", "--port", 0, "--repository", tmp_path, "--checkpoint", tmp_path / "random",
        "--traces", "none",
        "--model-trial-seconds", 3000, "--shutdown-seconds", 1,
    ]  # fmt: skip
    (tmp_path / "random" / "2").rename(tmp_path / "later")  # what serves first is version 1
    command = [sys.executable, "-W", "error", "-c", CODE, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            url = next(re.findall(r"url=(\S+)", line)[0] for line in process.stderr if "event=serving" in line)
            (tmp_path / "later").rename(tmp_path / "random" / "2")
            until_ready(url)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(httpx.post, f"{url}/v1/models/random/load", timeout=SECONDS)
                trial = child_of(process)
                process.terminate()
                errors = process.stderr.read()
                assert process.wait(SECONDS) == 0
                asked.exception(SECONDS)
        finally:
            process.kill()
    assert "event=stopped" in errors
    assert not Path(f"/proc/{trial}").exists()


def until_ready(url):
    for _ in range(SECONDS * 20):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("not ready")


def child_of(process):
    """The process number of the trial, once there is one."""
    for _ in range(SECONDS * 20):
        for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
            if found := path.read_text().split():
                return found[0]
        time.sleep(0.05)
    raise AssertionError("no trial began")
