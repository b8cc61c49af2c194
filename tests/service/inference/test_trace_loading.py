"""Which trace models serve: names, directories, those that ship, none; and what is refused in one sentence."""

import pytest

from tapline.models.checkpoint import CheckpointError
from tapline.service.inference import trace_loading
from tapline.service.inference.repository import ZOO, Repository
from tapline.service.inference.trace_loading import trace_directories
from tapline.service.settings import Settings
from tests.conftest import make_trace_checkpoint
from tests.paths import ROOT
from tests.service.command.cli_runner import tapline

CAPTURE = ROOT / "tests" / "data" / "captures" / "android.pcap"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, version in (("devices", "1"), ("devices", "2"), ("others", "1")):
        make_trace_checkpoint(root / name / version, name=name, version=version)
    return root


def test_those_that_ship_serve_where_none_is_asked_for(monkeypatch):
    assert [directory.parent.name for directory in trace_directories([])][:1] == ["iot-devices"]
    monkeypatch.setattr(trace_loading, "SHIPPED_TRACES", ("iot-devices", "not-there"))
    assert [directory.parent for directory in trace_directories([])] == [ZOO / "iot-devices"]


def test_models_are_named_or_are_where_their_directory_is(repository, tmp_path, monkeypatch):
    own = Repository(repository)
    assert trace_directories(["others", "devices"], own) == [repository / "others" / "1", repository / "devices" / "2"]
    assert trace_directories([str(repository / "devices" / "1")]) == [repository / "devices" / "1"]
    assert trace_directories([str(repository / "devices")]) == [repository / "devices" / "2"]
    assert trace_directories(["devices", "iot-devices"], own)[1].is_relative_to(ZOO)
    assert trace_directories(["none"], own) == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iot-devices").mkdir()  # what only happens to be called so is meant by ./iot-devices
    assert trace_directories(["iot-devices"])[0].is_relative_to(ZOO)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["{}/devices/1", "{}/devices/2"], "two trace models are called devices"),
        (["{}/others", "{}/others"], "two trace models are called others"),
        (["none", "{}/others"], "give `none` alone"),
        (["nothing-there"], "neither the name of a trace model here nor a directory"),
        (["flow-protocols"], "trace checkpoint"),
    ],
)
def test_what_cannot_be_meant_is_refused(repository, chosen, message):
    given = [text.format(repository) for text in chosen]
    with pytest.raises(CheckpointError, match=message):
        trace_directories(given)


@pytest.mark.whole
def test_the_command_line_says_it_in_one_sentence(repository, checkpoint_dir):
    options = [part for version in "12" for part in ("--traces", str(repository / "devices" / version))]
    result = tapline("classify", CAPTURE, "--checkpoint", checkpoint_dir, *options)
    assert result.returncode == 2
    assert result.stderr.startswith("two trace models are called devices: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_environment_has_them_with_commas_between(monkeypatch):
    monkeypatch.setenv("TAPLINE_TRACES", "iot-devices, /models/own")
    assert Settings().traces == ["iot-devices", "/models/own"]
    assert Settings(traces=["none"]).traces == ["none"]
