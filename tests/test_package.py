"""What an install puts where, and that a user's own folders do not hide it."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import files
from pathlib import Path

import pytest

from tapline.installation import DISTRIBUTION
from tests.paths import ROOT
from tests.service.command.cli_runner import CODE, EVERY_COMMAND

pytestmark = pytest.mark.whole

OWN = "raise SystemExit('the folder of the user was imported')\n"
LOADED = "tapline.models.flow, tapline.service.command.cli, tapline.service.api.server, tapline.training"
TOP_LEVEL = {"tapline", "_tapline_traffic.pth"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture
def own_folders(tmp_path):
    """The current directory of a user who has folders of these names."""
    for name in ("models", "service", "training", "zeek"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(OWN)
    return tmp_path


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_wheel_holds_one_package_and_all_of_it(wheel):
    names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"tapline"}
    tree = {path.as_posix() for part in ("models", "service", "training") for path in Path(ROOT, part).rglob("*.py")}
    there = {path.removeprefix(f"{ROOT}/") for path in tree}
    assert {f"tapline/{name}" for name in there} <= names
    scripts = {f"tapline/zeek_scripts/{path.name}" for path in (ROOT / "zeek" / "scripts").glob("*.zeek")}
    assert scripts <= names
    templates = {f"tapline/service/results/templates/report.{kind}" for kind in ("html", "css")}
    assert templates | {"tapline/py.typed", "tapline/models/zoo/flow-protocols/5/model.onnx"} <= names


def test_a_wheel_carries_licence_notice_and_the_cards_of_its_checkpoints(wheel):
    names = wheel.namelist()
    (licences,) = {name.rpartition("/")[0] for name in names if name.endswith("/licenses/LICENSE")}
    notice = wheel.read(f"{licences}/NOTICE.md").decode()
    assert notice == (ROOT / "NOTICE.md").read_text()
    checkpoints = sorted(name.rpartition("/")[0] for name in names if name.endswith("/checkpoint.json"))
    assert len(checkpoints) >= 3
    for folder in checkpoints:
        name, version = folder.split("/")[-2:]
        assert f"| `{name}` {version} |" in notice  # with what it learned from, and on which terms
        card = wheel.read(f"{folder}/README.md").decode()
        assert 'license: "bsd-3-clause"' in card
        assert "\n## Data\n" in card
        assert json.loads(wheel.read(f"{folder}/checkpoint.json"))["provenance"]


def test_a_wheel_holds_no_capture_test_or_cache(wheel):
    held = [name for name in wheel.namelist() if ".dist-info/" not in name]
    known = {".py", ".typed", ".zeek", ".json", ".md", ".onnx", ".safetensors", ".html", ".css", ".toml", ""}
    assert {name for name in held if Path(name).suffix not in known and "/training/cards/" not in name} == set()
    assert [name for name in wheel.namelist() if "/tests/" in name or "__pycache__" in name] == []


def test_an_install_leaves_nothing_else():
    installed = {path.parts[0] for path in files(DISTRIBUTION) if ".dist-info" not in path.parts[0]} - {".."}
    assert installed <= TOP_LEVEL


def test_a_wheel_works_beside_folders_of_the_same_names(wheel, own_folders, tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    wheel.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import {LOADED}; {EVERY_COMMAND}; print(tapline.__file__); "
        "from tapline.service.sources.zeek_process import package_scripts; print(package_scripts())"
    )
    found = run(own_folders, "-c", code)
    assert found.stderr == ""
    assert found.stdout.split() == [str(site / "tapline" / "__init__.py"), str(site / "tapline" / "zeek_scripts")]


def test_an_editable_install_works_beside_folders_of_the_same_names(own_folders):
    code = f"import {LOADED}; {EVERY_COMMAND}; print(tapline.service.command.cli.__file__)"
    found = run(own_folders, "-c", code)
    assert found.stderr == ""
    assert Path(found.stdout.strip()).name == "cli.py"
    capture = ROOT / "tests" / "data" / "captures" / "android.pcap"
    shown = run(own_folders, "-c", CODE, "classify", str(capture), "--limit", "1")
    assert "66 of 69 flows classified" in shown.stdout
