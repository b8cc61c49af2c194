"""What is said of what was given: captures twice, names of nothing, directories that hold something."""

import re
import shutil

import pytest

from tapline.training.data.label_map import LabelError
from tapline.training.loop.config import TrainingError
from tests.service.command.cli_runner import tapline
from tests.training.checking.flow_checks import CAPTURE, NFSTREAM, evaluate, labels_by_uid
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
        "--map: flow-protocols 5 has no label Kettle: what becomes it counts as never learned",
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


@pytest.mark.parametrize("word", ["unknown", "Unknown", "N/A"])
def test_a_word_for_nothing_is_no_label(tmp_path, served_flows, word):
    labels = labels_by_uid(tmp_path / "l.csv", served_flows, TLS=word)
    said, record = evaluate(tmp_path / "out", "--labels", labels)
    tls = sum(row["nearest"] == "TLS" for row in served_flows)
    assert record["joined"]["no_labels"] == {word: tls}
    assert (record["figures"]["things"], record["figures"]["never_learned"]) == (66 - tls, 0)
    assert record["left_out"]["flow without a label"] == tls
    assert f"taken for no label {tls} x {word}" in said
    assert f"taken for no label {tls} x {word}" in (tmp_path / "out" / "report.html").read_text()
    mapped = evaluate(tmp_path / "mapped", "--labels", labels, "--map", f"{word}=TLS")[1]
    assert (mapped["figures"]["things"], mapped["joined"]["no_labels"]) == (66, {})


def test_nothing_but_words_for_nothing(tmp_path, served_flows):
    labels = tmp_path / "l.csv"
    labels.write_text(f"uid,label\n{served_flows[0]['uid']},Unknown\n")
    error = invoke(
        "evaluate", "--checkpoint", "flow-protocols", "--captures", CAPTURE, "--labels", labels, "--out", tmp_path / "o"
    ).exception
    assert "what it says of them, Unknown (1), is taken for no label" in str(error)


def test_verdicts_of_a_model_as_labels_are_warned_of(tmp_path):
    (tmp_path / "own.csv").write_text(tapline("classify", CAPTURE, "--format", "csv", "--show", "flows").stdout)
    said, record = evaluate(tmp_path / "out", "--labels", tmp_path / "own.csv")
    (note,) = record["notes"]
    assert "own.csv has the columns confidence, model, version: its labels look like a model's verdicts" in note
    assert f"note: {note}" in said
    assert "look like a model&#x27;s verdicts" in (tmp_path / "out" / "report.html").read_text()
    assert evaluate(tmp_path / "tool", "--labels", NFSTREAM, "--predictions", tmp_path / "own.csv")[1]["notes"] == []


def test_a_tool_of_nothing_here_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("uid,prediction\nnobody,TLS\n")
    arguments = ["--captures", CAPTURE, "--predictions", tmp_path / "t.csv", "--out", tmp_path / "out"]
    error = invoke(*ASKED, *arguments).exception
    assert isinstance(error, LabelError)
    assert "t.csv: none of the rows of t (1 prediction) is of a labelled flow: no uid, Community ID" in str(error)
    assert not (tmp_path / "out").exists()


def test_one_of_a_thing_is_told_as_one(tmp_path, served_flows):
    labels = tmp_path / "l.csv"
    labels.write_text(f"uid,label\n{served_flows[0]['uid']},{served_flows[0]['nearest']}\nnobody,TLS\n")
    said, _ = evaluate(tmp_path / "out", "--labels", labels)
    page = (tmp_path / "out" / "report.html").read_text()
    for text in (said, page):
        assert "2 rows with a label" in text
        assert "1 row of no flow with payload here" in text
        assert not re.search(r"\b1 (rows|flows|captures|labels|classes)\b", text)
    assert "over the 1 of 1 label with 1 flow or more" in said
