"""Zeek's logs and tapline's in pandas, by zat: of a recording everywhere, of a live Zeek where there is one. The blocks
of the page about it run, and what it says of zat is so."""

import asyncio
import gzip
import inspect
import re
import shutil
import sys
from datetime import datetime, timedelta

import pandas as pd
import pytest
from zat.log_to_dataframe import LogToDataFrame
from zat.zeek_log_reader import ZeekLogReader

from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.logs import LogDirectory, is_log_directory
from tapline.service.sources.zeek_process import package_scripts
from tests.documentation.pages import blocks, text_of
from tests.paths import DATA, ROOT
from tests.zeek.clusters import free_ports

sys.path.insert(0, str(ROOT / "benchmarks"))
import zat_logs

RECORDED = DATA / "zat"
CAPTURE = DATA / "captures" / "android.pcap"
PAGE = text_of("docs/zeek-logs.md")
BLOCKS = [block.text for block in blocks("docs/zeek-logs.md", "python")]
HEAD = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tx\n"


async def play(port, folder):
    """The capture through a live Zeek to a service, whose verdicts come back into Zeek's logs."""
    settings = Settings(traces=["iot-devices"], zeek=[f"ws://127.0.0.1:{port}"], trace_lateness_seconds=600)
    scripts = [str(package_scripts() / f"{name}.zeek") for name in ("replay", "flow_log", "published_logs")]
    async with asyncio.timeout(120), Service(settings).running():
        process = await asyncio.create_subprocess_exec(
            "zeek", "-C", "-r", str(CAPTURE), *scripts, f"Tapline::listen_port={port}/tcp", "Tapline::sensor=tap",
            cwd=folder, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert await process.wait() == 0


@pytest.fixture(
    scope="module",
    params=[
        "recorded",
        pytest.param(
            "live",
            marks=[pytest.mark.zeek, pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")],
        ),
    ],
)
def logs(request, tmp_path_factory):
    """A folder with conn, ssl, ps, raw, tapline, tapline_trace and the compressed tapline_flow log."""
    if request.param == "recorded":
        return RECORDED
    folder = tmp_path_factory.mktemp("logs")
    (port,) = free_ports(1)
    asyncio.run(play(port, folder))
    (folder / "tapline_flow.log.gz").write_bytes(gzip.compress((folder / "tapline_flow.log").read_bytes()))
    return folder


@pytest.fixture
def page(logs, monkeypatch):
    """What the blocks of the page leave behind."""
    monkeypatch.chdir(logs)
    names = {}
    for block in BLOCKS:
        exec(block, names)
    return names


def test_the_page_and_the_benchmark_read_in_one_way():
    assert inspect.getsource(zat_logs.frame_of) in BLOCKS[0] + "\n"


def test_logs_have_the_types_that_zeek_means(page):
    verdicts, traces = page["verdicts"], page["frame_of"]("tapline_trace.log")
    kinds = {name: str(kind) for name, kind in verdicts.dtypes.items()}
    assert kinds["ts"] == "datetime64[ns]"
    assert (kinds["confidence"], kinds["unknown"], kinds["final"]) == ("float64", "boolean", "boolean")
    assert (kinds["id.orig_p"], kinds["id.resp_p"]) == ("UInt16", "UInt16")
    assert {kinds[name] for name in ("uid", "label", "nearest", "community_id", "model_version")} == {"object"}
    assert all(version.isdecimal() for version in verdicts["model_version"])
    assert 0 < verdicts["final"].sum() < len(verdicts)
    assert (traces["window_end"] - traces["window_start"] == pd.Timedelta(minutes=10)).all()
    assert str(traces["flows"].dtype) == str(traces["cut"].dtype) == "UInt64"
    assert traces["suspicion"].isna().all()
    assert traces["suspicious"].isna().all()


def test_verdicts_join_with_connections_and_tls(page):
    flows, conn, verdicts = page["flows"], page["conn"], page["verdicts"]
    assert len(flows) == len(conn) == 69
    assert set(verdicts["uid"]) <= set(conn["uid"])
    joined = flows[flows["label"].notna()]
    assert len(joined) == len(verdicts) == 66
    same = verdicts.set_index("uid").loc[joined["uid"]]
    for name in ("id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto"):
        assert list(same[name]) == list(joined[name])
    tls = flows[flows["established"].notna()]
    assert len(tls) == 18
    assert set(tls["label"]) == {"TLS"}
    assert set(tls["established"]) <= {True, False}
    assert page["by_label"].loc["TLS", "size"] > 18
    assert not page["doubtful"]["label"].isna().any()


def test_traces_join_with_the_flows_that_they_looked_at(page):
    looked_at = page["looked_at"]
    assert looked_at["id.orig_h"].notna().all()
    assert looked_at.groupby("subject")["share"].sum().max() <= 1.0001
    assert len(looked_at) > len(page["traces"])


def test_flow_logs_keep_digits_and_begin_when_connections_do(page):
    features, conn = page["features"], page["conn"]
    starts = features.drop_duplicates("uid").set_index("uid")["start"]
    both = conn.set_index("uid")["ts"].reindex(starts.index)
    assert (both == starts).all()
    assert all(re.fullmatch("(-?[0-9]+,)*-?[0-9]+", text) for text in features["payload_lengths"])
    assert all(re.fullmatch("([0-9a-f]{2})*", text) for text in features["orig_bytes"])


def test_the_reader_of_rows_gives_the_same_but_for_what_is_unset(logs):
    rows = list(ZeekLogReader(str(logs / "conn.log")).readrows())
    frame = zat_logs.frame_of(logs / "conn.log")
    assert [row["uid"] for row in rows] == list(frame["uid"])
    unset = frame["duration"].isna()
    assert unset.any()
    assert {rows[place]["duration"] for place in unset[unset].index} == {timedelta(0)}
    verdicts = list(ZeekLogReader(str(logs / "tapline.log")).readrows())
    assert {type(row["confidence"]) for row in verdicts} == {float}
    assert {type(row["final"]) for row in verdicts} == {bool}


def test_tapline_and_zat_say_the_same_of_every_flow(logs, tmp_path):
    assert zat_logs.differences(logs) == (69, {})


def test_they_agree_on_every_bundled_log_directory(tmp_path):
    total = 0
    directories = [path for path in sorted((DATA / "zeek-logs").rglob("*")) if is_log_directory(path)]
    for number, path in enumerate(directories):
        flows, other = zat_logs.differences(zat_logs.unpacked(path, tmp_path / str(number)))
        assert other == {}, path.name
        total += flows
    assert f"of {total} flows in {len(directories)} log directories" in " ".join(PAGE.split())


def test_a_difference_would_be_seen(tmp_path):
    folder = zat_logs.many(RECORDED, tmp_path / "logs", 1)
    text = (folder / "ps.log").read_text()
    assert zat_logs.differences(folder) == (69, {})
    lines = text.splitlines()
    last = lines[-1].split("\t")
    last[-1] = '"' + last[-1]
    (folder / "ps.log").write_text("\n".join([*lines[:-1], "\t".join(last)]) + "\n")
    assert zat_logs.differences(folder)[1] != {}


def written(path, fields, *rows):
    names, kinds = zip(*fields, strict=True)
    lines = ["#fields\t" + "\t".join(names), "#types\t" + "\t".join(kinds), *("\t".join(row) for row in rows)]
    path.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return path


TEXT = [("ts", "time"), ("uid", "string"), ("label", "string"), ("more", "string")]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("Café", "Café"),
        ("\\xff\\x09", "\\xff\\x09"),
        ("(empty)", "(empty)"),
        ("a,b", "a,b"),
        ("2", "2"),
        ("1.10", "1.10"),
    ],
)
def test_text_that_zat_keeps(tmp_path, given, read):
    path = written(tmp_path / "x.log", TEXT, ("1.5", "C1", given, "z"), ("2.5", "C2", "-", "z"))
    frame = zat_logs.frame_of(path)
    assert frame["label"][0] == read
    assert frame["label"].isna().tolist() == [False, True]
    assert frame["more"].tolist() == ["z", "z"]


def test_text_that_zat_does_not_keep(tmp_path):
    """What the page warns of; where zat mends it, so does the page."""
    path = written(tmp_path / "x.log", TEXT, ("1.5", "C1", "a#b", "z"), ("2.5", "C2", "NA", "z"))
    frame = zat_logs.frame_of(path)
    assert frame["label"].isna().tolist() == [False, True]
    assert frame["label"][0] == "a"
    assert frame["more"].isna().tolist() == [True, False]
    quoted = written(tmp_path / "q.log", TEXT, ("1.5", "C1", '"a', "z"), ("2.5", "C2", 'b"', "z"))
    assert len(zat_logs.frame_of(quoted)) == 1
    numbers = written(tmp_path / "n.log", TEXT, ("1.5", "C1", "1.10", "z"))
    guessed = LogToDataFrame().create_dataframe(str(numbers), ts_index=False)
    assert guessed["label"][0] == 1.1


def test_compressed_and_cut_logs(tmp_path):
    packed = tmp_path / "conn.log.gz"
    packed.write_bytes(gzip.compress((RECORDED / "conn.log").read_bytes()))
    with pytest.raises(UnicodeDecodeError):
        zat_logs.frame_of(packed)
    cut = tmp_path / "cut"
    cut.mkdir()
    lines = (RECORDED / "conn.log").read_text().splitlines()
    (cut / "conn.log").write_text("\n".join(lines[:12]) + "\n" + lines[12][:40])
    reader = LogDirectory(cut)
    own, theirs = list(reader), zat_logs.frame_of(cut / "conn.log")
    assert len(theirs) == len(own) + 1
    assert reader.left_out["log line that cannot be read"] == 1


def test_rotated_logs_are_read_one_by_one_and_empty_ones_too(tmp_path):
    rotated = tmp_path / "conn.2020-02-24-10-00-00.log"
    rotated.write_bytes((RECORDED / "conn.log").read_bytes())
    assert len(zat_logs.frame_of(rotated)) == 69
    empty = written(tmp_path / "empty.log", TEXT)
    assert zat_logs.frame_of(empty).empty


def test_times_are_noise_below_a_microsecond_and_rows_in_local_time():
    raw = LogToDataFrame().create_dataframe(str(RECORDED / "conn.log"), ts_index=False)
    assert (raw["ts"] != raw["ts"].dt.round("us")).any()
    first = next(iter(ZeekLogReader(str(RECORDED / "conn.log")).readrows()))
    assert first["ts"] == datetime.fromtimestamp(1582454779.631132)


def test_zat_with_its_index_warns():
    """Tests run with warnings as errors, so the page leaves `ts_index` out."""
    with pytest.raises(Warning, match="inplace"):
        LogToDataFrame().create_dataframe(str(RECORDED / "conn.log"))
