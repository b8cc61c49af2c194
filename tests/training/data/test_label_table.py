"""Which row of a table is of which flow: by uid, Community ID, endpoints with time or capture, captures, hosts."""

import pytest

from tapline.models.flow import Flow
from tapline.service.community_id import community_id
from tapline.training.data.label_columns import time_us
from tapline.training.data.label_map import LabelError
from tapline.training.data.label_reading import read_labels
from tapline.training.data.label_table import JoinAccount, Match
from tapline.training.data.samples import read_manifest, read_samples
from tests.paths import DATA
from tests.training.command import tapline_train

ENDS = "l4,src_ip,src_port,dst_ip,dst_port"
START_US = 1_582_454_779_631_132  # 2020-02-23 10:46:19.631132 UTC


def flow(start_us=START_US, uid="U", orig_p=5, proto="udp"):
    return Flow(uid, start_us, 0, "10.0.0.1", orig_p, "10.0.0.2", 53, proto)


def table(path, text, **options):
    file = path / "labels.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(file, **options)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("ts", "1582454779.631132"),
        ("ts", "2020-02-23T10:46:19.631132Z"),
        ("ts", "2020-02-23T11:46:19.631132+01:00"),
        ("timestamp", "2020-02-23 10:46:19.631132"),
        ("start_us", "1582454779631132"),
        ("bidirectional_first_seen_ms", "1582454779631"),
        ("#first_seen", "1582454779631"),
        ("start_ns", "1582454779631132000"),
        ("Timestamp", "23/02/2020 10:46:19 AM"),
        ("Timestamp", "23/2/2020 10:46"),
        ("start_time", "1582454779.0"),
    ],
)
def test_times_of_tools(tmp_path, column, text):
    if column in ("start_ns",):
        assert time_us(text, column) == START_US
        return
    labels = table(tmp_path, f"{column},{ENDS},label\n{text},udp,10.0.0.1,5,10.0.0.2,53,DNS\n", tolerance_seconds=20)
    found = labels.match("c/a.pcap", flow())
    assert (found.label, found.by) == ("DNS", "endpoints")


@pytest.mark.parametrize("text", ["yesterday", "-5", "nan", "inf", "1e30", "31/31/2020 10:46", "2020-02-30T00:00:00"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError):  # noqa: PT011 - of the standard library
        time_us(text, "ts")


def test_names_of_columns_of_tools(tmp_path):
    for head, row in (
        ("uid,label", "U,DNS"),
        ("community_id,label", f"{community_id(flow())},DNS"),
        ("Src IP,Src Port,Dst IP,Dst Port,Protocol,Timestamp,Label",
         "10.0.0.1,5,10.0.0.2,53,17,23/02/2020 10:46:19,DNS"),
        (" Source IP, Source Port, Destination IP, Destination Port, Protocol, Timestamp, Label",
         "10.0.0.2,53,10.0.0.1,5,17,23/02/2020 10:46:19,DNS"),
        ("ts,id.orig_h,id.orig_p,id.resp_h,id.resp_p,proto,label", "1582454779.631132,10.0.0.1,5,10.0.0.2,53,udp,DNS"),
        ("src_ip;src_port;dst_ip;dst_port;protocol;bidirectional_first_seen_ms;application_name",
         "10.0.0.1;5;10.0.0.2;53;17;1582454779631;DNS"),
        ("#flow_id|protocol|first_seen|src_ip|src_port|dst_ip|dst_port|ndpi_proto",
         "1|17|1582454779631|10.0.0.1|5|10.0.0.2|53|DNS"),
        ("input,uid,start_us,proto,orig_h,orig_p,resp_h,resp_p,label",
         "somewhere/a.pcap,other,1582454779631132,udp,10.0.0.1,5,10.0.0.2,53,DNS"),
        ("pcap,label", "a.pcap,DNS"),
        ("pcap,l4,client_ip,client_port,server_ip,server_port,protocol", "a.pcap,udp,10.0.0.1,5,10.0.0.2,53,DNS"),
    ):  # fmt: skip
        labels = table(tmp_path, (head + "\n" + row + "\n").encode("utf-8-sig"))
        assert labels.label_of("somewhere/a.pcap", flow()) == "DNS", head


def test_a_row_is_of_the_flow_of_its_time(tmp_path):
    rows = "".join(
        f"{second},udp,10.0.0.1,5,10.0.0.2,53,{label}\n" for second, label in ((0, "A"), (10, "B"), (20, "A"))
    )
    labels = table(tmp_path, f"ts,{ENDS},label\n{rows}")
    said = [labels.match("x", flow(round(1e6 * second))) for second in (0, 0.9, 9.5, 11.0, 15, 19.2, 40)]
    assert [each.label for each in said] == ["A", "A", "B", "B", None, "A", None]
    assert [each.offset_us for each in said] == [None] * 4 + [-5_000_000, None, -20_000_000]
    assert table(tmp_path, f"ts,{ENDS},label\n{rows}", shift_seconds=-20).label_of("x", flow(0)) == "A"


def test_rows_that_contradict_each_other_say_nothing(tmp_path):
    rows = "".join(
        f"{at},udp,10.0.0.1,5,10.0.0.2,53,{label}\n" for at, label in ((100, "A"), (100.6, "B"), (300, "C"), (300, "D"))
    )
    labels = table(tmp_path, f"ts,{ENDS},label\n{rows}")
    said = [labels.match("x", flow(round(1e6 * second))) for second in (100.3, 100, 100.6, 300)]
    assert [(each.label, each.ambiguous) for each in said] == [(None, True), ("A", False), ("B", False), (None, True)]
    account = JoinAccount()
    assert [account.take(each) for each in said] == [None, "A", "B", None]
    assert (account.ambiguous, account.joined, account.without) == (2, {"endpoints": 2}, 0)
    assert labels.left_over(account) == {"flow that label rows contradict each other on": 2}


def test_the_nearest_of_exact_times_counts(tmp_path):
    rows = "".join(
        f"{at},udp,10.0.0.1,5,10.0.0.2,53,{label}\n" for at, label in ((1000, "A"), (1400, "B"), (1700, "C"))
    )
    labels = table(tmp_path, f"start_us,{ENDS},label\n{rows}")
    said = [labels.match("x", flow(at)) for at in (1000, 1400, 1401, 1200, 900, 5000)]
    assert [(each.label, each.ambiguous) for each in said] == [
        ("A", False), ("B", False), ("B", False), (None, True), ("A", False), (None, True),
    ]  # fmt: skip


def test_the_first_key_that_finds_a_row_counts(tmp_path):
    both = f"uid,community_id,label\nU,1:nothing=,A\nV,{community_id(flow())},B\n"
    labels = table(tmp_path, both)
    assert [labels.match("x", each)[:2] for each in (flow(), flow(uid="W"))] == [("A", "uid"), ("B", "community ID")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty: expected a CSV table whose first line names its columns"),
        ("\n", "empty: expected a CSV table"),
        ("uid,name\nU,DNS\n", "expected one called label or class or application_name or ndpi_proto; it has uid, name: "
         "name yours, --column NAME"),
        ("name,label\na,DNS\n", "no column that says which flow a row is of: expected uid, community_id"),
        (f"{ENDS},label\nudp,10.0.0.1,5,10.0.0.2,53,DNS\n", "expected a column with the flow's start"),
        ("ts,l4,src_ip,dst_ip,dst_port,label\n", "no column client_port"),
        ("ts,src_ip,src_port,dst_ip,dst_port,label\n", "no column l4: expected one called l4 or proto or ip_proto or "
         "transport or protocol, .*; it has ts, src_ip, src_port, dst_ip, dst_port, label"),
        ("uid,label\n", "no row below the names of its columns"),
        ("uid,label\nU,\n", "none of its rows has a label in the column label; it has uid, label"),
        (f"ts,{ENDS},label\nlater,udp,10.0.0.1,5,10.0.0.2,53,DNS\n", "line 2: expected an IP protocol"),
        ("uid,label\nU,A\nU,A\nU,B\n", "line 4: a second label for the same uid, which line 2 calls A"),
        ("pcap,label\na.pcap,A\na.pcap,B\n", "line 3: a second label for the same capture, which line 2 calls A"),
        ("mac,label\n00:01,A\n00:01,B\n", "line 3: a second label for the same subject"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_joined(tmp_path, text, why):
    with pytest.raises(LabelError, match=why):
        table(tmp_path, text)


def test_a_column_that_is_not_there(tmp_path):
    for column, why in (("trth", "no column trth; it has uid, truth: name the one with the label, --column NAME"),):
        with pytest.raises(LabelError, match=why):
            table(tmp_path, "uid,truth\nU,DNS\n", column=column)
    assert table(tmp_path, "uid,Truth\nU,DNS\n", column="Truth").label_of("x", flow()) == "DNS"
    with pytest.raises(LabelError, match="it has uid, name: rename yours"):
        table(tmp_path, "uid,name\nU,DNS\n", called=("prediction",))
    with pytest.raises(LabelError, match="none of its rows has a label and a confidence of DPI in the column label"):
        table(tmp_path, "uid,label,confidence\nU,DNS,port\n", confidence=["DPI"])


def test_hosts_by_address_and_time(tmp_path):
    mac = "00:17:88:00:00:01"
    labels = table(tmp_path, f"mac,label\n{mac.upper()},HueBridge\n")
    assert labels.labels_subjects
    assert labels.match_subject("c/a.pcap", mac, 0, 5).label == "HueBridge"
    assert labels.match_subject("c/a.pcap", "00:17:88:00:00:02", 0, 5) == Match()
    moved = table(tmp_path, "source,subject,start_us,label\na.pcap,10.0.0.1,100,A\na.pcap,10.0.0.1,90000000,B\n")
    asked = ("c/a.pcap", (0, 200)), ("c/a.pcap", (80_000_000, 95_000_000)), ("c/b.pcap", (0, 200))
    assert [moved.match_subject(name, "10.0.0.1", *span).label for name, span in asked] == ["A", "B", None]
    whole = table(tmp_path, "pcap,label\na.pcap,A\n")
    assert whole.match_subject("c/a.pcap", mac, 0, 5)[:2] == ("A", "capture")


def test_the_clock_of_a_table_is_hinted_at(tmp_path):
    rows = "".join(f"{7200 + n},udp,10.0.0.1,{n},10.0.0.2,53,DNS\n" for n in range(9))
    labels, account = table(tmp_path, f"ts,{ENDS},label\n{rows}"), JoinAccount()
    for n in range(9):
        account.take(labels.match("x", flow(1_000_000 * n, orig_p=n)))
    hint = account.clock_hint()
    assert hint.startswith("9 flows have rows with their endpoints at other times, by the median +7200.0 s off: ")
    assert hint.endswith("a time zone of +2 h? Then give --time-shift -7200")
    assert JoinAccount().clock_hint() == ""
    account.take(Match("DNS", "uid", (3,)))
    assert account.clock_hint() == ""


def test_rows_of_other_days_are_of_no_other_clock(tmp_path):
    labels, account = table(tmp_path, f"ts,{ENDS},label\n{7612620},udp,10.0.0.1,5,10.0.0.2,53,DNS\n"), JoinAccount()
    account.take(labels.match("x", flow(0)))
    assert account.clock_hint() == ""
    account.take(labels.match("x", flow(1_000_000 * (7612620 - 3600))))
    assert account.clock_hint().startswith("1 flow has rows with their endpoints at other times, by the median +3600.0")


@pytest.mark.whole
def test_extract_joins_by_endpoints_and_time_and_says_what_is_left_over(tmp_path):
    capture = DATA / "captures" / "android.pcap"
    tapline_train("extract", capture, "--out", tmp_path / "plain")
    flows = [sample.flow for sample in read_samples(tmp_path / "plain")]
    lines = [
        f"{f.start_us / 1e6 + 3600:.3f},{f.proto},{f.resp_h},{f.resp_p},{f.orig_h},{f.orig_p},L{n % 3}"
        for n, f in enumerate(flows)
    ]
    path = tmp_path / "labels.csv"
    path.write_text(f"ts,{ENDS},label\n" + "\n".join([*lines, "5,udp,1.1.1.1,1,2.2.2.2,2,L0"]) + "\n")
    tapline_train("extract", capture, "--labels", path, "--time-shift", -3600, "--out", tmp_path / "out")
    assert [sample.label for sample in read_samples(tmp_path / "out")] == [f"L{n % 3}" for n in range(len(flows))]
    assert read_manifest(tmp_path / "out").left_out["label row of no flow with payload"] == 1
    tapline_train("extract", capture, "--labels", path, "--out", tmp_path / "none")
    manifest = read_manifest(tmp_path / "none")
    assert manifest.labelled == 0
    assert "a time zone of +1 h? Then give --time-shift -3600" in manifest.clock_hint
