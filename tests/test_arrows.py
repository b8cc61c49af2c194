"""The arrows between the folders: who may import whom, and that the base install needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

TORCH_FILES = {
    "models/mm4flow.py",
    "models/mm4flow_packed.py",
    "models/linear_transformer.py",
    "models/tracegram.py",
    "service/engines/torch_engine.py",
    "service/engines/torch_trace_engine.py",
    "service/engines/torch_common.py",
}
FORBIDDEN = {"models": {"service", "training"}, "service": {"training"}}
MODELS_MAY_IMPORT = {"numpy", "msgspec", "tapline"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_folders_import_only_what_they_may(folder):
    wrong = {str(path.relative_to(ROOT)): imported(path) & FORBIDDEN[folder] for path in modules(folder)}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_torch_only_where_networks_are_defined_or_run():
    paths = [path for folder in ("models", "service") for path in modules(folder)]
    assert {str(path.relative_to(ROOT)) for path in paths if "torch" in imported(path)} == TORCH_FILES


def test_models_import_numpy_and_msgspec_only():
    for path in modules("models"):
        allowed = MODELS_MAY_IMPORT | set(sys.stdlib_module_names)
        if str(path.relative_to(ROOT)) in TORCH_FILES:
            allowed.add("torch")
        assert imported(path) <= allowed, path


def test_commands_and_server_load_without_torch():
    loaded = "tapline.service.command.cli, tapline.service.api.server, tapline.service.engines.onnx_engine"
    code = f"import sys; sys.modules['torch'] = None; import {loaded}"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=60)


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
