"""Splits into training, validation and test keep together what they say; leaks across them are found and counted."""

import re

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.training.commands.tapline_train import app
from tapline.training.data.corpus import make_corpus
from tapline.training.data.extraction import ExtractSettings, extract
from tapline.training.data.labels import Labels
from tapline.training.data.leaks import find_leaks
from tapline.training.data.origins import find_origins
from tapline.training.data.parquet import Sample
from tapline.training.data.partition import PARTS, make_partition, read_partition, write_partition
from tapline.training.data.split import SplitError
from tapline.training.data.store import store
from tapline.training.loop.config import TrainingError

pytestmark = pytest.mark.whole


def flow(number, lengths=(40, -60), content=b"", host="10.0.0.1"):
    return Flow(f"U{number}", number * 1000, 0, host, 5, "10.0.0.9", 53, "udp", 1, 1, list(lengths), content)


def samples(tmp_path, captures=20, per_capture=4):
    made = [
        Sample(
            "c", f"{capture}.pcap", "ab"[capture % 2], flow(capture * 10 + n, (40 + capture, -60), host=f"10.0.0.{n}")
        )
        for capture in range(captures)
        for n in range(per_capture)
    ]
    return store(made, tmp_path)


def sides(values, parts):
    return [{value for value, part in zip(values, parts, strict=True) if part == place} for place in range(3)]


def test_a_capture_is_in_one_part_and_labels_are_in_all(tmp_path):
    stored = samples(tmp_path)
    partition = make_partition(stored, "capture", 0.2, 0.3, 1, {})
    parts = partition.parts(stored)
    captures = sides(stored.captures_of(), parts)
    assert [len(side) for side in captures] == [10, 4, 6]
    assert not captures[0] & captures[1] | captures[0] & captures[2] | captures[1] & captures[2]
    assert sides(stored.labels_of(), parts) == [{"a", "b"}] * 3
    write_partition(tmp_path / "split.json", partition)
    np.testing.assert_array_equal(read_partition(tmp_path / "split.json").parts(stored), parts)


@pytest.mark.parametrize(("captures", "sizes"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2))])
def test_three_captures_of_a_label_are_enough_for_three_parts(tmp_path, captures, sizes):
    stored = samples(tmp_path, captures=2 * captures)
    parts = make_partition(stored, "capture", 0.2, 0.2, 0, {}).parts(stored)
    for label in ("a", "b"):
        mine = stored.take(stored.with_label([label]))
        found = [len(side) for side in sides(mine.captures_of(), parts[stored.with_label([label])])]
        assert tuple(found) == sizes


def test_a_host_is_in_one_part(tmp_path):
    stored = samples(tmp_path)
    parts = make_partition(stored, "host", 0.25, 0.25, 0, {}).parts(stored)
    hosts = sides(stored.hosts.tolist(), parts)
    assert sum(map(len, hosts)) == 4
    assert all(hosts)


def test_the_future_is_for_the_test(tmp_path):
    stored = samples(tmp_path)
    parts = make_partition(stored, "time", 0.25, 0.25, 0, {}).parts(stored)
    assert np.bincount(parts).tolist() == [40, 20, 20]
    assert stored.start_us[parts == 0].max() < stored.start_us[parts == 1].min()
    assert stored.start_us[parts == 1].max() < stored.start_us[parts == 2].min()


def test_splits_that_cannot_be_made_or_used(tmp_path):
    stored = samples(tmp_path)
    with pytest.raises(SplitError, match="leave nothing to train on"):
        make_partition(stored, "capture", 0.5, 0.5, 0, {})
    with pytest.raises(SplitError, match="cannot make 3 parts"):
        make_partition(samples(tmp_path, captures=2), "capture", 0.2, 0.2, 0, {})
    partition = make_partition(samples(tmp_path, captures=4), "capture", 0.2, 0.2, 0, {})
    with pytest.raises(SplitError, match=r"capture 'c/4.pcap' is not in the split"):
        partition.parts(stored)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SplitError, match="not a split"):
        read_partition(tmp_path / "bad.json")


def test_what_is_held_out_is_known_in_other_features_too(tmp_path):
    partition = make_partition(samples(tmp_path, captures=10), "capture", 0.2, 0.2, 0, {})
    more = samples(tmp_path, captures=14)
    held = partition.held_out(more)
    assert set(more.take(held).captures_of()) == {n for n, part in partition.part_of.items() if part != "train"}
    assert len(set(more.take(~held).captures_of())) == 10
    with pytest.raises(SplitError, match="by flow"):
        make_partition(more, "flow", 0.2, 0.2, 0, {}).held_out(more)


def test_leaks_are_told_from_likeness(tmp_path):
    text = bytes(range(60))
    changed = bytes([255, *text[1:]])
    other = text[::-1]
    made = [
        Sample("c", "train", "a", flow(0, content=text)),
        Sample("c", "test", "a", flow(1, content=text)),  # the same
        Sample("c", "test", "a", flow(2, content=changed)),  # nearly
        Sample("c", "test", "b", flow(3, content=changed)),  # nearly, and of another label
        Sample("c", "test", "a", flow(4, content=other)),  # neither
        Sample("c", "test", "a", flow(5, (41, -60), text)),  # other lengths
    ]
    stored = store(made, tmp_path)
    (leak,) = find_leaks(stored, np.array([0, 2, 2, 2, 2, 2]), Mm4flowFeatures(8, 64))
    assert msgspec.structs.asdict(leak) == {
        "part": "test", "flows": 5, "same": 1, "near": 3, "near_of_other_label": 1
    }  # fmt: skip


def test_a_run_is_trained_on_one_part_and_measured_on_another(tmp_path):
    root = tmp_path / "captures"
    for number in range(12):
        folder = root / ("DNS" if number % 2 else "Other") / f"{number}"
        folder.mkdir(parents=True)
        write_logs(folder, number)
    extract(find_origins([root]), tmp_path / "features", ExtractSettings(Labels(from_folder=True)))
    small = ["-d", "16", "-nh", "2", "-l", "1", "-f", "32", "--draws", "128", "-ep", "3", "-lr", "1e-2"]
    features = ["--features", str(tmp_path / "features")]
    split = ["--split", str(tmp_path / "split.json")]
    result = CliRunner().invoke(app, ["split", *features, "--out", split[1], "--validation", "0.3", "--test", "0.3"])
    assert result.exit_code == 0, result.output
    assert all(part in result.output for part in PARTS)
    run = ["--run", str(tmp_path / "run")]
    for arguments in (
        ["finetune", *features, *split, "--out", run[1], *small],
        ["evaluate", *features, *split, *run],
        ["calibrate", *run, "--false-rejection", "0.2"],
        ["export", *run, "--out", str(tmp_path / "zoo"), "--name", "s", "--version", "1", "--int8", features[1]],
        ["card", *run, "--name", "s", "--version", "1"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (result.output, result.exception)
    assert "macro-F1 is" not in result.output
    assert "calibrated on the part for validation." in result.output
    assert re.findall(r"^\| (part|validation|test|fold|\d.*?) \|", result.output, re.MULTILINE)[:3] == [
        "part", "validation", "test"
    ]  # fmt: skip
    assert "settings chosen" not in result.output
    assert "protocol" not in result.output
    report = (tmp_path / "run" / "report.html").read_text()
    assert "the part for the test of the split split.json" in report
    assert "settings were chosen" not in report
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") >= 6
    assert (tmp_path / "zoo" / "s" / "1" / "model.int8.onnx").is_file()
    result = CliRunner().invoke(app, ["evaluate", *features, *run])
    assert isinstance(result.exception, TrainingError)
    assert "give --split" in str(result.exception)


def write_logs(folder, number):
    """A capture in the published layout: eight flows, short ones for DNS, long ones for the rest."""
    head = "#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto"
    lines = {"conn": [head], "ps": [f"{head}\tup\tdown\tps"], "raw": [f"{head}\tfwd_raw\tbwd_raw"]}
    for n in range(8):
        key = f"{1000 + number}.{n}\tC{number}{n}\t10.0.0.1\t{5000 + n}\t10.0.0.2\t53\tudp"
        length = 40 + n if number % 2 else 900 + 7 * number + n
        lines["conn"].append(key)
        lines["ps"].append(f"{key}\t1\t1\t{length}:1,-{length}:1")
        lines["raw"].append(f"{key}\t{'01' if number % 2 else 'ee'}{n:02x}{number:02x}\t(empty)")
    for name, rows in lines.items():
        (folder / f"{name}.log").write_text("\n".join(rows) + "\n")


def test_a_class_without_a_flow_or_with_one_capture_is_named(tmp_path):
    stored = samples(tmp_path, captures=3)
    with pytest.raises(TrainingError, match=r"1 label\(s\) in at least 2 captures"):
        make_corpus(stored, 2)
