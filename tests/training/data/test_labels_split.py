"""Labels find their flows in either direction; a split never puts a capture on both sides."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapline.models.flow import Flow
from tapline.training.data.label_reading import read_labels
from tapline.training.data.labels import LabelError
from tapline.training.data.parquet import Sample
from tapline.training.data.split import SplitError, fold_of_captures, halve_labels, held_by, known_labels

HEADER = "pcap,l4,client_ip,client_port,server_ip,server_port,protocol,confidence\n"


def flow(orig_h="10.0.0.1", orig_p=5, resp_h="10.0.0.2", resp_p=53, proto="udp"):
    return Flow("U", 0, 0, orig_h, orig_p, resp_h, resp_p, proto)


def table(path: Path, *rows, **options):
    path = path / "flows.csv"
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    return read_labels(path, **options)


def test_either_direction_and_transports_without_ports(tmp_path):
    labels = table(
        tmp_path,
        "a.pcap,udp,10.0.0.1,5,10.0.0.2,53,DNS,DPI",
        "a.pcap,icmp,10.0.0.1:0,0,10.0.0.2:0,0,ICMP,DPI",
        "a.pcap,icmpv6,FE80:0::1,0,ff02::2,0,ICMPV6,DPI",
        "a.pcap,igmp,10.0.0.1:0,0,224.0.0.1:0,0,IGMP,DPI",
    )
    assert labels.label_of("a.pcap", flow()) == "DNS"
    assert labels.label_of("a.pcap", flow("10.0.0.2", 53, "10.0.0.1", 5)) == "DNS"
    assert labels.label_of("a.pcap", flow(proto="tcp")) is None
    assert labels.label_of("b.pcap", flow()) is None
    assert labels.label_of("a.pcap", flow(orig_p=8, resp_p=0, proto="icmp")) == "ICMP"
    assert labels.label_of("a.pcap", flow("fe80::1", 133, "ff02::2", 134, "icmp")) == "ICMPV6"
    assert labels.label_of("a.pcap", flow("10.0.0.1", 0, "224.0.0.1", 0, "2")) == "IGMP"


def test_captures_of_one_name_in_several_folders_are_told_apart(tmp_path):
    ends = "udp,10.0.0.1,5,10.0.0.2,53"
    labels = table(
        tmp_path, f"office/a.pcap,{ends},DNS,DPI", f"home/a.pcap,{ends},MDNS,DPI", f"b.pcap,{ends},NTP,DPI"
    )  # fmt: skip
    assert labels.label_of("office/a.pcap", flow()) == "DNS"
    assert labels.label_of("sites/home/a.pcap", flow()) == "MDNS"  # extracted from a folder above
    assert labels.label_of("a.pcap", flow()) is None
    assert labels.label_of("elsewhere/b.pcap", flow()) == "NTP"
    assert labels.name_of("backoffice/a.pcap") is None  # whole parts of the path


def test_rows_left_out_are_counted(tmp_path):
    same = "a.pcap,udp,10.0.0.1,5,10.0.0.2,53"
    labels = table(
        tmp_path, f"{same},DNS,DPI", f"{same},Other,DPI (cache)", f"{same},Third,Match by port",
        "a.pcap,udp,1::2::3,5,10.0.0.2,53,DNS,DPI", confidence=("DPI",),
    )  # fmt: skip
    assert (labels.rows, labels.left_out, labels.malformed) == (4, 1, 1)
    found = labels.match("a.pcap", flow())
    assert (found.label, found.ambiguous, found.lines) == (None, True, (2, 3))


def test_rows_of_several_confidences_are_used(tmp_path):
    rows = [f"a.pcap,udp,10.0.0.1,{port},10.0.0.2,53,{label}" for port, label in
            ((5, "DNS,DPI (cache)"), (6, "Unknown,Unknown"), (7, "NTP,Match by port"))]  # fmt: skip
    plain, one, two = (table(tmp_path, *rows, confidence=asked) for asked in ((), ("DPI",), ("DPI", "Unknown")))
    found = [[labels.label_of("a.pcap", flow(orig_p=port)) for port in (5, 6, 7)] for labels in (plain, one, two)]
    assert found == [["DNS", "Unknown", "NTP"], ["DNS", None, None], ["DNS", "Unknown", None]]
    assert len({plain.sha256, one.sha256, two.sha256}) == 3


def test_a_table_that_cannot_be_used(tmp_path):
    with pytest.raises(LabelError, match="no column app"):
        table(tmp_path, column="app")
    with pytest.raises(LabelError, match="no row with a label"):
        table(tmp_path, "a.pcap,udp,?,5,10.0.0.2,53,DNS,DPI")
    with pytest.raises(LabelError, match="not a readable CSV"):
        read_labels(tmp_path / "absent.csv")


def samples(held):
    return [Sample("c", capture, label, flow()) for capture, labels in held.items() for label in labels]


captures = st.dictionaries(
    st.integers(0, 40).map("c{}".format), st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=12
)


@settings(max_examples=50)
@given(captures, st.integers(0, 5))
def test_each_capture_is_in_one_fold_and_labels_are_spread(held, seed):
    everything = samples(held)
    labels = known_labels(held_by(everything), 2)
    fold_of = fold_of_captures(everything, labels, 3, seed)
    assert set(fold_of) == set(held)
    assert set(fold_of.values()) <= {0, 1, 2}
    folds = defaultdict(set)
    for sample in everything:
        folds[sample.label].add(fold_of[sample.capture])
    assert all(len(folds[label]) > 1 for label in known_labels(held_by(everything), 12))


def test_a_label_of_one_capture_cannot_be_split():
    everything = samples({"x": "aab", "y": "b"})
    with pytest.raises(SplitError, match="label 'a' has 1 capture"):
        fold_of_captures(everything, ["a", "b"], 2, 0)


def test_halves_are_disjoint_and_whole():
    first, second = halve_labels(list("abcdefg"), 3)
    assert first | second == set("abcdefg")
    assert not first & second
    assert halve_labels(list("abcdefg"), 4) != (first, second)
