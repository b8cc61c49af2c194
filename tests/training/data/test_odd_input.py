"""Training input as it is found: label tables of spreadsheets, logs beside captures, parts that cannot be read."""

import gzip
import shutil

import pytest

from tapline.service.sources.capture import CaptureReader
from tapline.training.data.corrections import read_corrections
from tapline.training.data.extraction import extract
from tapline.training.data.label_reading import read_labels
from tapline.training.data.labels import LabelError
from tapline.training.data.origins import ExtractError, find_origins
from tapline.training.data.samples import read_samples
from tests.paths import DATA
from tests.service.sources import builders as b

ODD = DATA / "odd"
HEADER = "pcap,l4,client_ip,client_port,server_ip,server_port,protocol\n"
ROWS = (
    "labels-capture.pcap,{udp},192.0.2.10,40000,192.0.2.53,53,DNS\n"
    "labels-capture.pcap,{tcp},192.0.2.10,41000,192.0.2.80,80,HTTP\n"
)
PLAIN = HEADER + ROWS.format(udp="udp", tcp="tcp")


def labels_of(table):
    return [table.label_of("labels-capture.pcap", flow) for flow in CaptureReader(ODD / "labels-capture.pcap")]


@pytest.mark.parametrize("name", ["labels-bom.csv", "labels-upper.csv"])
def test_tables_of_spreadsheets_label_both_flows(name):
    table = read_labels(ODD / name)
    assert (table.rows, table.malformed, labels_of(table)) == (2, 0, ["DNS", "HTTP"])


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace(",", ";").encode("utf-8-sig"),
        PLAIN.replace(",", "\t").encode("utf-16"),
        PLAIN.replace(",", "\t").encode(),
        ("sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n")).encode(),
        ("sep=|\n" + PLAIN.replace(",", "|")).encode("utf-8-sig"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace(HEADER, HEADER.upper()).encode(),
        PLAIN.replace(HEADER, HEADER.replace(",", " , ")).replace(",40000", ", 40000 ").encode(),
        (HEADER + ROWS.format(udp="UDP", tcp="Tcp")).encode(),
        (HEADER + ROWS.format(udp="17", tcp="6")).encode(),
        (HEADER + ROWS.format(udp="17.0", tcp="6.0")).replace("40000", "40000.0").encode(),
        PLAIN.replace("192.0.2.10", "::ffff:192.0.2.10").encode(),
        "".join(",".join(f'"{cell}"' for cell in line.split(",")) + "\n" for line in PLAIN.splitlines()).encode(),
        PLAIN.encode() + b",,,,,,\n\n",
    ],
)
def test_tables_in_every_form(tmp_path, content):
    path = tmp_path / "flows.csv"
    path.write_bytes(content)
    assert labels_of(read_labels(path)) == ["DNS", "HTTP"]


def test_labels_in_a_windows_code_page_and_protocols_by_number(tmp_path):
    path = tmp_path / "flows.csv"
    rows = ("1,10.0.0.1,8,10.0.0.2,0,Prüfung", "58,fe80::1,,fe80::2,,Ping", "IGMP,10.0.0.1,,224.0.0.1,,Gruppe")
    path.write_bytes((HEADER + "".join(f"a.pcap,{row}\n" for row in rows)).encode("cp1252"))
    table = read_labels(path)
    one, two = (bytes.fromhex(f"fe80{number:028x}") for number in (1, 2))
    packets = (
        b.ipv4(1, b.icmp(8, payload=b"x")),
        b.ipv6(58, b.icmp(128, payload=b"x"), one, two),
        b.ipv4(2, b"x", target=bytes([224, 0, 0, 1])),
    )
    flows = b.flows_of([b.ethernet(packet) for packet in packets])
    assert [table.label_of("a.pcap", flow) for flow in flows] == ["Prüfung", "Ping", "Gruppe"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (HEADER + "a.pcap,carrier pigeon,10.0.0.1,1,10.0.0.2,2,X\n", "line 2: expected an IP protocol"),
        (
            HEADER + "a.pcap,256,10.0.0.1,1,10.0.0.2,2,X\n",
            "line 2: expected an IP protocol, two addresses and two ports",
        ),
        (HEADER + "a.pcap,tcp,10.0.0.1,70000,10.0.0.2,2,X\n", "line 2: expected"),
        ("pcap;l4\n", "no column of labels: expected one called label"),
        ("pcap;l4;protocol\n", "no column client_ip"),
        ("", "empty: expected a CSV table"),
    ],
)
def test_why_no_row_can_be_used_is_said(tmp_path, content, sentence):
    path = tmp_path / "flows.csv"
    path.write_text(content)
    with pytest.raises(LabelError, match=sentence):
        read_labels(path)


def test_corrections_of_a_spreadsheet(tmp_path):
    path = tmp_path / "corrections.csv"
    path.write_bytes("UID;Label;note\r\nC1;DNS;seen\r\n".encode("utf-8-sig"))
    assert [(row.uid, row.label) for row in read_corrections(path)] == [("C1", "DNS")]


def extracted(root, out):
    manifest = extract(find_origins([root]), out)
    return manifest, sorted((sample.capture, sample.flow.uid) for sample in read_samples(out))


@pytest.mark.parametrize("name", ["zeek-iso", "zeek-json", "zeek-rotated"])
def test_logs_of_every_form_are_extracted(tmp_path, name):
    _, samples = extracted(ODD / name, tmp_path / "out")
    assert samples == [(name, "C1")]


def lay_out(root):
    """A folder of logs and captures beside and in each other."""
    shutil.copytree(ODD / "zeek-iso", root / "day")
    capture = b.pcap([b.Packet(0, b.ethernet(b.ipv4(17, b.udp(4000, 53, b"payload"))))])
    (root / "beside.pcap").write_bytes(capture)
    (root / "day" / "inside.pcap").write_bytes(capture)
    (root / "day" / "dns.log").write_text("#fields\tts\n")
    return root


def test_logs_hide_no_capture_beside_them(tmp_path):
    manifest, samples = extracted(lay_out(tmp_path / "in"), tmp_path / "out")
    assert [capture for capture, _ in samples] == ["beside.pcap", "day", "day/inside.pcap"]
    assert (manifest.left_out, manifest.warnings) == ({}, {})
    assert [origin.capture for origin in find_origins([tmp_path / "in" / "day"])] == ["day", "inside.pcap"]


def test_logs_of_a_capture_stand_for_it(tmp_path):
    root = lay_out(tmp_path / "in")
    shutil.copytree(ODD / "zeek-iso", root / "logs" / "beside.pcap")
    assert [origin.capture for origin in find_origins([root])] == ["day", "day/inside.pcap", "logs/beside.pcap"]


def test_one_damaged_file_costs_itself(tmp_path):
    root = lay_out(tmp_path / "in")
    (root / "broken.pcap").write_bytes(b"no capture at all")
    (root / "cut.pcap.gz").write_bytes(gzip.compress((root / "beside.pcap").read_bytes())[:-9])
    (root / "day" / "conn.log").write_bytes((root / "day" / "conn.log").read_bytes() + b"half a line\n")
    manifest, samples = extracted(root, tmp_path / "out")
    assert [capture for capture, _ in samples] == ["beside.pcap", "cut.pcap.gz", "day", "day/inside.pcap"]
    assert manifest.left_out == {"capture unreadable": 1, "log line that cannot be read": 1}
    assert set(manifest.warnings) == {"in/broken.pcap", "in/cut.pcap.gz", "in/day"}
    assert "1 values for" in manifest.warnings["in/day"]


def test_reasons_are_told_when_nothing_can_be_read(tmp_path):
    root = tmp_path / "in"
    (root / "logs").mkdir(parents=True)
    for number in range(7):
        (root / f"{number}.pcap").write_bytes(b"no capture at all")
    (root / "logs" / "conn.log").write_text("#fields\tts\tuid\n")
    with pytest.raises(ExtractError) as error:
        extract(find_origins([root]), tmp_path / "out")
    text = str(error.value)
    assert (
        "8 captures hold no flow with payload: 8 x capture unreadable; in/0.pcap: expected a pcap or pcapng file"
        in text
    )
    assert text.endswith("; and 3 more")
    with pytest.raises(ExtractError, match=r"no field id\.orig_h: not a log in the published layout"):
        extract(find_origins([root / "logs"]), tmp_path / "out")
