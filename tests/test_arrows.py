"""The arrows between rooms, one module to a name, and that the base install needs no torch."""

import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter

import pytest

from tests import rooms
from tests.paths import ROOT
from tests.service.command.cli_runner import EVERY_COMMAND

TORCH_FILES = {
    "models/mm4flow.py",
    "models/mm4flow_packed.py",
    "models/linear_transformer.py",
    "models/tracegram.py",
    "service/engines/torch_engine.py",
    "service/engines/torch_trace_engine.py",
    "service/engines/torch_common.py",
}
MODELS_MAY_IMPORT = {"numpy", "msgspec", "tapline", *sys.stdlib_module_names}

ARROWS = {
    "models": "",
    "service": "",
    "service/community_id": "models",
    "service/gpu": "",
    "service/sources/packets": "models",
    "service/sources/flows": "models service/sources/packets",
    "service/engines": "models",
    "service/log_lines": "models",
    "service/metrics": "models service/engines service/gpu",
    "service/process": "models service/log_lines service/metrics",
    "service/sources/bus": "models service/log_lines service/metrics service/process",
    "service/sources": "models service/log_lines service/sources/bus service/sources/flows service/sources/packets",
    "service/settings": "service/engines service/sinks service/sources service/sources/bus service/validation_words",
    "service/configuration": (
        "models service/access service/settings service/sinks service/sources service/toml_lines "
        "service/validation_words"
    ),
    "service/access": "models service/log_lines service/settings",
    "service/hub": "models",
    "service/inference": "models service/engines service/log_lines service/metrics service/process",
    "service/traces": (
        "models service/community_id service/engines service/inference service/log_lines service/metrics "
        "service/process"
    ),
    "service/history": (
        "models service/alerts service/community_id service/log_lines service/metrics service/process service/traces"
    ),
    "service/results": "models service/community_id service/traces",
    "service/classifying": "models service/inference service/metrics service/results service/sources service/traces",
    "service/sinks": (
        "models service/alerts service/community_id service/log_lines service/metrics service/process "
        "service/sources/bus service/traces service/validation_words"
    ),
    "service/toml_lines": "models",
    "service/validation_words": "models",
    "service/alerts": (
        "models service/community_id service/drift service/log_lines service/metrics service/toml_lines "
        "service/traces service/validation_words"
    ),
    "service/drift": (
        "models service/engines service/inference service/log_lines service/metrics service/process "
        "service/sources service/traces"
    ),
    "service/live": (
        "models service/alerts service/history service/inference service/log_lines service/metrics service/process "
        "service/sinks service/sources service/sources/bus service/traces"
    ),
    "service/trace_models": (
        "models service/engines service/inference service/log_lines service/metrics service/process "
        "service/settings service/traces"
    ),
    "service/jobs": (
        "models service/classifying service/history service/inference service/log_lines service/metrics "
        "service/process service/results service/settings service/sources service/trace_models service/traces"
    ),
    "service/runtime": (
        "models service/alerts service/drift service/engines service/gpu service/history service/inference "
        "service/jobs service/live service/log_lines service/metrics service/process service/settings "
        "service/sinks service/sources service/sources/bus service/trace_models"
    ),
    "service/doctor": (
        "models service/engines service/inference service/runtime service/settings service/sinks service/sources "
        "service/sources/bus"
    ),
    "service/dashboard": (
        "models service/access service/alerts service/drift service/engines service/history service/inference "
        "service/jobs service/live service/process service/results service/runtime service/sinks service/traces"
    ),
    "service/api": (
        "models service/access service/alerts service/classifying service/dashboard service/drift service/engines "
        "service/history service/inference service/jobs service/live service/log_lines service/metrics "
        "service/process service/results service/runtime service/settings service/sinks service/sources/bus "
        "service/trace_models service/traces service/validation_words"
    ),
    "service/backup": "models service/drift service/history service/jobs service/traces",
    "service/python": (
        "models service/community_id service/engines service/inference service/live service/log_lines "
        "service/metrics service/process service/results service/sources service/sources/bus service/traces"
    ),
    "service/bulk": "models service/engines service/inference service/log_lines service/python service/sources",
    "service/command": (
        "models service/access service/alerts service/api service/backup service/bulk service/configuration "
        "service/doctor service/drift service/engines service/history service/hub service/inference service/jobs "
        "service/live service/log_lines service/process service/python service/results service/runtime "
        "service/settings service/sinks service/sources service/sources/bus service/sources/packets service/traces"
    ),
    "training/loop": "models",
    "training/data": "models service/community_id service/sources training/loop",
    "training/flows": "models training/data training/loop",
    "training/traces": "models training/data training/loop",
    "training/distilling": "models training/data training/evaluation training/loop",
    "training/evaluation": "models training/data training/flows training/loop training/traces",
    "training/export": "models training/data training/evaluation training/flows training/loop training/traces",
    "training/checking": (
        "models service/engines service/inference service/traces training/data training/evaluation training/loop"
    ),
    "training/comparing": "models training/data training/evaluation training/loop",
    "training/commands": (
        "models service/engines training/checking training/comparing training/data training/distilling "
        "training/evaluation training/export training/flows training/loop training/searching training/traces"
    ),
    "training/searching": "models training/data training/flows training/loop",
    "training": "training/commands",
}
"""Which rooms a room imports, and no others."""


def files(*parts):
    return {path.relative_to(ROOT).as_posix(): path for part in parts for path in sorted((ROOT / part).rglob("*.py"))}


def packages(path):
    return {name.split(".")[0] for name in rooms.imported(path)}


def test_rooms_import_only_what_they_may():
    print(f"\n{rooms.graph()}")  # shown by `pytest -s`
    assert rooms.arrows() == {name: targets.split() for name, targets in ARROWS.items()}


@pytest.mark.parametrize("found", [rooms.arrows, rooms.module_arrows], ids=["rooms", "modules"])
def test_arrows_run_one_way(found):
    arrows = found()
    order = list(TopologicalSorter(arrows).static_order())  # no order where they run in a circle
    assert all(order.index(target) < order.index(name) for name, targets in arrows.items() for target in targets)


def test_nothing_is_imported_past_the_package():
    """From the repository's root the parts can be found without it: each module would be there twice."""
    tree = files("src", "models", "service", "training", "tests", "benchmarks", "zeek")
    assert {name for name, path in tree.items() if packages(path) & {"models", "service", "training"}} == set()


def test_a_name_means_one_module():
    names = Counter(path.stem for path in rooms.modules().values())
    del names["__init__"], names["__main__"]
    assert [name for name, count in names.items() if count > 1] == []


def test_torch_only_where_networks_are_defined_or_run():
    found = files("models", "service")
    assert {name for name, path in found.items() if "torch" in packages(path)} == TORCH_FILES


def test_models_import_numpy_and_msgspec_only():
    for name, path in files("models").items():
        assert packages(path) - MODELS_MAY_IMPORT <= ({"torch"} if name in TORCH_FILES else set()), name


def test_commands_and_server_load_without_torch():
    loaded = "tapline.service.api.server, tapline.service.engines.onnx_engine"
    code = f"import sys; sys.modules['torch'] = None; import {loaded}; {EVERY_COMMAND}"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=60)


NOT_OF_A_SERVER = (
    "sqlalchemy", "rich", "jinja2", "numpy.ma", "tapline.service.alerts.rule_file", "tapline.service.sources.capture",
    "tapline.service.history.history", "tapline.service.jobs.result", "tapline.service.command.classify_command",
)  # fmt: skip
"""What takes memory and is loaded where it is used: for a history, alert rules, reports, captures, other commands."""


def test_a_server_loads_nothing_that_it_may_never_use():
    loaded = "tapline.service.command.cli, tapline.service.command.serve_command, tapline.service.api.server"
    code = f"import sys, {loaded}; print([name for name in {NOT_OF_A_SERVER} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("module", ["tapline.service.engines.onnx_session", "tapline.training.export.quantise"])
def test_onnx_runtime_is_loaded_with_its_telemetry_off(module, tmp_path):
    code = f"import os, {module}; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []  # it leaves a session file where it is on
