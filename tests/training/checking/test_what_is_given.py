"""What is said of what was given: captures twice, names of nothing, directories that hold something."""

import shutil

import pytest

from tapline.training.loop.config import TrainingError
from tests.training.checking.flow_checks import CAPTURE, NFSTREAM, evaluate
from tests.training.command import invoke, tapline_train

ASKED = ["evaluate", "--checkpoint", "flow-protocols", "--labels", NFSTREAM]


def test_a_capture_that_is_given_twice_is_read_once(tmp_path):
    folder = tmp_path / "captures"
    folder.mkdir()
    shutil.copy(CAPTURE, folder)
    (tmp_path / "link.pcap").symlink_to(folder / CAPTURE.name)
    _, once = evaluate(tmp_path / "once", "--labels", NFSTREAM, captures=folder)
    more = [arg for path in (folder, folder / CAPTURE.name, tmp_path / "link.pcap") for arg in ("--captures", path)]
    said, record = evaluate(tmp_path / "out", "--labels", NFSTREAM, *more, captures=folder)
    assert record["figures"]["things"] == once["figures"]["things"] == 60
    told = "3 captures given more than once, read once"
    assert told in said
    assert told in (tmp_path / "out" / "report.html").read_text()
    assert told in tapline_train(*ASKED, "--captures", folder, *more, "--out", tmp_path / "new", "--dry-run")
    assert "given more than once" not in once["notes"]


def test_names_of_nothing_in_a_map_are_said(tmp_path):
    said, record = evaluate(
        tmp_path / "out", "--labels", NFSTREAM, "--map", "Tls.Gogle=TLS", "--map", "TLS.Google=Kettle", "--map", "MDNS="
    )
    assert record["notes"] == [
        "--map: nothing is called Tls.Gogle in the labels and predictions",
        "--map: flow-protocols 2 has no label Kettle: what becomes it counts as never learned",
    ]
    assert all(f"note: {note}" in said for note in record["notes"])


@pytest.mark.parametrize("name", ["a.pcap", "evaluation.json", "evaluations"])
def test_a_directory_of_something_else_is_never_written_into(tmp_path, name):
    (tmp_path / name).write_text("{}")
    for dry in ([], ["--dry-run"]):
        error = invoke(*ASKED, "--captures", CAPTURE, "--out", tmp_path, *dry).exception
        assert isinstance(error, TrainingError)
        assert "holds no evaluation of a checkpoint: give another --out" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_replacing_an_evaluation_is_said(tmp_path):
    (tmp_path / "out").mkdir()
    first, _ = evaluate(tmp_path / "out", "--labels", NFSTREAM)
    again, _ = evaluate(tmp_path / "out", "--labels", NFSTREAM)
    told = f"note: the evaluation of flow-protocols in {tmp_path / 'out'} is replaced"
    assert told not in first
    assert told in again
