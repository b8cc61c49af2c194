"""Shared by all tests: small checkpoints with random weights, and flows of many lengths."""

import atexit
import gc
import os
import random
import shutil
import sqlite3
import sqlite3.dbapi2
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from safetensors.numpy import save_file as save_numbers
from safetensors.torch import save_file

from tapline.models.checkpoint import (
    ONNX,
    STUDENT,
    WEIGHTS,
    Calibration,
    Checkpoint,
    FlowCheckpoint,
    Mm4flowNetwork,
    OwnMm4flow,
    TracegramCheckpoint,
    TracegramNetwork,
    Unknown,
)
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.context import FlowContext, PortPrior
from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.models.student import StudentNetwork
from tapline.models.trace_context import SIZES
from tapline.models.tracegram import Tracegram
from tapline.service.settings import Settings
from tapline.training.distilling.student_network import LearningStudent
from tapline.training.export.checkpoint_export import export_traces
from tapline.training.export.mm4flow_onnx import mm4flow_graph
from tests.logged import reset_logs

os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="tapline-tests-")  # no test keeps anything in a home
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)
os.environ["TAPLINE_CONFIG"] = "none"  # no test reads the settings of who runs it
os.environ.setdefault("TAPLINE_HISTORY", "none")  # tests of the history say where theirs is
Settings.model_fields["data_dir"].default_factory = lambda: Path(tempfile.mkdtemp(dir=os.environ["XDG_DATA_HOME"]))
Settings.model_rebuild(force=True)  # several services of one test each have a directory of their own
gc.disable()  # while modules of tests are loaded, a third of which would be looking through what stays anyhow
settings.register_profile("tapline", deadline=None)  # speed is measured in benchmarks, not here
settings.load_profile("tapline")


def pytest_runtestloop():
    """From here on garbage is looked for, in what comes."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """Modules in which a test runs long come first, so that the workers end together, each with something short."""
    long = {item.path for item in items if item.get_closest_marker("whole") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


LABELS = ["dns", "http", "tls"]
CONTEXT = FlowContext(
    {"tcp": [0, 1, 2], "udp": [0, 2]},
    PortPrior(
        {"tcp": {80: {1: 40}, 443: {2: 38, 1: 2}, 8080: {1: 5, 2: 5}}, "udp": {53: {0: 40}, 443: {2: 9}}},
        weight=0.5, temperature=3.0, threshold=0.5,
    ),
)  # fmt: skip


def make_checkpoint(directory: Path, **changes) -> Path:
    """A checkpoint with random weights that spread the logits."""
    torch.manual_seed(3)
    network = Mm4flowNetwork(d_model=32, n_layer=2, n_head=2, dim_ff=64, n_class=len(LABELS))
    model = Mm4flow(network).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if ".cls." not in name}

    def write_files(folder: Path) -> None:
        save_file(weights, folder / WEIGHTS)
        onnx.save(mm4flow_graph({name: value.numpy() for name, value in weights.items()}, network), folder / ONNX)
        if "student" in changes:
            student = random_student(changes["student"].network, len(LABELS), 2 * network.d_model)
            save_numbers(asdict(student.weights()), folder / STUDENT)

    fields = {
        "kind": "mm4flow", "name": "random", "version": "1", "network": network, "labels": LABELS,
        "calibration": Calibration(2.0), "unknown": Unknown(0.4), **changes,
    }  # fmt: skip
    write_checkpoint(directory, Checkpoint(**fields), write_files)
    return directory


def random_student(network: StudentNetwork, classes: int, width: int, spread: float = 0.5) -> LearningStudent:
    """A student that learned nothing."""
    torch.manual_seed(1)
    student = LearningStudent(network, classes, width)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return student


@pytest.fixture(scope="module", autouse=True)
def connections_closed():
    """Connections of SQLite that the tests of a module open are closed at its end, whatever collects garbage when."""
    left_open = {}

    class Watched(sqlite3.Connection):
        def __init__(self, database, *args, **options):
            super().__init__(database, *args, **options)
            left_open[id(self)] = self, f"{database} by {os.environ.get('PYTEST_CURRENT_TEST')}"

        def close(self):
            super().close()
            left_open.pop(id(self), None)

    connect = partial(sqlite3.connect, factory=Watched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        patch.setattr(sqlite3.dbapi2, "connect", connect)
        yield
    assert [said for _, said in left_open.values()] == []


@pytest.fixture(scope="module", autouse=True)
def logging_as_nobody_has_set_it():
    """What sets the log of this process, as a command or `tapline.load` does, is nothing to other modules' tests."""
    reset_logs()
    yield
    reset_logs()


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory):
    """`<repository>/random/1` with random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("repository") / "random" / "1")


@pytest.fixture(scope="session")
def context_dir(tmp_path_factory):
    """The same with a context, and sure of whatever it says."""
    directory = tmp_path_factory.mktemp("repository") / "random" / "1"
    return make_checkpoint(directory, context=CONTEXT, calibration=Calibration(0.2))


def make_trace_checkpoint(
    directory: Path,
    encoder: str = "tracegram",
    width: int = 32,
    int8: bool = False,
    context: tuple = (),
    **changes,
) -> Path:
    """A trace checkpoint with random weights that spread the logits, whose network reads these fields of context
    and has a bag of them, where there are any.

    `encoder`: `tracegram`; `mm4flow`, that of the random flow checkpoint; `own`, an MM4flow of its own; or `context`,
    none, with every field where none is named. Those of one kind and width have the same encoder.
    """
    if encoder == "context":
        context = context or tuple(SIZES)
    has_background = changes.get("unknown", Unknown(0)).background
    torch.manual_seed(4)
    network = TracegramNetwork(
        n_class=len(LABELS) + has_background,
        encoder="mm4flow" if encoder == "own" else encoder,
        feature_size=width,
        emb_dim=width,
        dim=48,
        dim_head=16,
        queries=20,
        decoder_ff=64,
        context=context,
        bag=bool(context),
    )
    own = Mm4flowNetwork(d_model=width // 2, n_layer=2, n_head=2, dim_ff=64, n_class=1) if encoder == "own" else None
    model = Tracegram(network, flow_classes=2, mm4flow=own).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ".pos_emb." not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.running_var, 0.2, 2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    fields = {
        "kind": "tracegram", "name": f"random-{encoder}", "version": "1", "network": network, "labels": LABELS,
        "flow_checkpoint": FlowCheckpoint("random", "1", "0" * 64) if encoder == "mm4flow" else None,
        "mm4flow": OwnMm4flow(own, Mm4flowFeatures(64, 0)) if own else None, **changes,
    }  # fmt: skip
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    export_traces(directory, TracegramCheckpoint(**fields), weights, "# random\n", int8)
    return directory


@pytest.fixture(scope="session")
def trace_checkpoint_dir(tmp_path_factory):
    """`<repository>/random-tracegram/1` with random weights."""
    return make_trace_checkpoint(tmp_path_factory.mktemp("repository") / "random-tracegram" / "1")


def make_flows(count: int, seed: int = 5) -> list[Flow]:
    """Flows as different in length as real ones."""
    generator = random.Random(seed)
    flows = []
    for index in range(count):
        packets = min(254, 1 + int(generator.expovariate(0.08)))
        lengths = [generator.choice((1, -1)) * generator.randint(1, 1600) for _ in range(packets)]
        sides = [generator.randbytes(generator.choice((0, 12, 60, 256))) for _ in range(2)]
        up = sum(length > 0 for length in lengths)
        flows.append(
            Flow(
                f"F{index}", 1_000_000 * index, 5, f"10.0.0.{index % 250 + 1}", 1024 + index, "192.0.2.1", 53, "udp",
                up, packets - up, lengths, *sides, orig_pkts=up, resp_pkts=packets - up, orig_ip_bytes=100,
            )
        )  # fmt: skip
    return flows


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    return np.random.default_rng(11)
