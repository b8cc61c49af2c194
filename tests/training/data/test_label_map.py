"""A map of labels merges some and drops others, says why, and is refused where it cannot be meant."""

import json

import pytest

from tapline.training.data.corrections import Correction, Corrections
from tapline.training.data.label_map import LabelError, LabelMap, read_label_map
from tapline.training.data.labels import Labels
from tapline.training.data.samples import read_manifest, read_samples
from tests.paths import DATA
from tests.training.command import invoke, tapline_train

PROTOCOLS = DATA / "protocols"


def written(folder, *rows, head="label,becomes,why"):
    path = folder / "map.csv"
    path.write_text("".join(f"{row}\n" for row in (head, *rows)))
    return path


def test_labels_become_others_or_none(tmp_path):
    found = read_label_map(written(tmp_path, "LLMNR,MDNS,the same messages", "Unknown,,no protocol"))
    assert [found.of(label) for label in ("LLMNR", "Unknown", "MDNS", None)] == ["MDNS", None, "MDNS", None]
    assert found.name == "map.csv"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["A,A,one"], "line 2: 'A' becomes itself"),
        (["X,Y,one", "", "A,B,one", "B,C,two"], "line 4: 'A' becomes 'B', which line 5 changes too"),
        (["A,B,one", "B,,two"], "line 2: 'A' becomes 'B', which line 3 changes too"),
        (["A,B,one", "B,A,two"], "line 2: 'A' becomes 'B', which line 3 changes too"),
        (["A,B,one", "A,C,two"], "line 3: 'A' is in line 2 already"),
        (["A,B,one", ",C,two"], "line 3: expected a label, what it becomes, and why"),
        (["A,B,"], "line 2: expected a label, what it becomes, and why"),
        ([], "no label in it"),
    ],
)
def test_a_map_that_cannot_be_meant_is_refused(tmp_path, rows, said):
    with pytest.raises(LabelError, match=f"map.csv:? {said}"):
        read_label_map(written(tmp_path, *rows))


def test_a_map_that_is_none_is_refused(tmp_path):
    with pytest.raises(LabelError, match="no column why"):
        read_label_map(written(tmp_path, "A,B", head="label,becomes"))
    with pytest.raises(LabelError, match="not a readable CSV table"):
        read_label_map(tmp_path / "absent.csv")


def test_a_map_is_part_of_what_decides_labels():
    plain = Labels(corrections=Corrections([Correction("U", "A")]))
    mapped = Labels(corrections=Corrections([Correction("U", "A")]), map=LabelMap("m.csv", "0" * 64, {"A": "B"}))
    assert plain.fingerprint() != mapped.fingerprint()
    assert "map" not in plain.describe()


@pytest.mark.whole
def test_extract_with_a_map(tmp_path):
    rows = ["HTTP,Web,one application", "TLS,Web,another", "NTP,,not wanted", "HTPP,Web,misspelt"]
    extract = ["extract", PROTOCOLS / "pcap", "--labels", PROTOCOLS / "flows.csv", "--confidence", "DPI"]
    tapline_train(*extract, "--out", tmp_path / "plain")
    mapped = [*extract, "--label-map", written(tmp_path, *rows), "--out", tmp_path / "mapped"]
    assert "4 labels changed by map.csv" in tapline_train(*mapped, "--dry-run")
    assert "note: map.csv names labels that nothing here bears: HTPP" in tapline_train(*mapped)
    was, now = (read_manifest(tmp_path / name) for name in ("plain", "mapped"))
    assert now.labels["Web"] == was.labels["HTTP"] + was.labels["TLS"]
    assert not {"HTTP", "TLS", "NTP"} & set(now.labels)
    assert now.labelled == was.labelled - was.labels["NTP"]
    assert now.samples == was.samples == len(list(read_samples(tmp_path / "mapped")))
    assert json.loads((tmp_path / "mapped" / "manifest.json").read_text())["settings"]["labels"]["map"] == "map.csv"
    folders = [*extract[:2], "--label-from-folder", "--label-map", written(tmp_path, "A,A,same"), "--out", tmp_path]
    assert "becomes itself" in str(invoke(*folders).exception)
