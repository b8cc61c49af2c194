"""`tapline history`: what was kept as CSV and Parquet, by filters; what is wrong is one sentence."""

import csv
import json
import shutil
import sys

import pytest
from pyarrow import parquet

from tapline.service.access.audit import NOBODY
from tapline.service.command.cli import app
from tapline.service.history.export import ROWS_IN_A_GROUP
from tests.service.command.cli_runner import tapline
from tests.service.history.kept import BUS, flow, settled, trace, verdict
from tests.service.history.test_alerts import ALERTS
from tests.service.history.test_history import VARIED, ask, keep
from tests.service.history.test_versions import file_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data directory with a history."""
    folder = tmp_path_factory.mktemp("data")

    async def body(history):
        await keep(history, *VARIED, (flow("formula", server_name="=1+1", orig_bytes=b"GET"), verdict()))
        history.trace(trace(suspicion=0.5, suspicious=True))
        for one in ALERTS:
            history.alert(one)
        await settled(history)
        assert await history.acknowledge("c", "anna")
        assert await history.acknowledge("b", NOBODY)
        await settled(history)

    ask(f"sqlite:///{folder / 'history.db'}", body, content=True)
    return folder


def run(folder, *options):
    return tapline("history", *options, "--history", "sqlite", "--data-dir", folder)


def test_csv_holds_flows_in_order_and_nothing_that_a_spreadsheet_computes(folder, tmp_path):
    result = run(folder, "export", "--to", tmp_path / "out.csv")
    assert (result.returncode, result.stderr) == (0, f"{tmp_path / 'out.csv'}: 6 flows\n")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert "".join(row["uid"] for row in rows) == "abcdeformula"
    assert [row["label"] for row in rows[:4]] == ["tls", "dns", "ssh", "unknown"]
    assert rows[3]["nearest"] == "dns"
    assert rows[0]["payload_lengths"] == "300 -1400"
    assert rows[5]["server_name"] == "'=1+1"
    assert "orig_bytes" not in rows[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.csv"]


def test_parquet_holds_types_and_what_filters_ask_for(folder, tmp_path):
    options = ("--host", "10.0.0.0/8", "--min-confidence", "0.5", "--known", "--since", "5m", "--content")
    assert run(folder, "export", "--to", tmp_path / "out.parquet", *options).returncode == 0
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["uid"].to_pylist() == ["a", "b", "e", "formula"]
    assert table["payload_lengths"].to_pylist()[0] == [300, -1400]
    assert table["orig_bytes"].to_pylist()[3] == b"GET".hex()
    assert table["unexpected_port"].to_pylist() == [False, None, None, None]
    assert str(table.schema.field("confidence").type) == "double"


def test_traces_are_exported_with_their_flows(folder, tmp_path):
    assert run(folder, "export", "--show", "traces", "--suspicious", "--to", tmp_path / "out.parquet").returncode == 0
    (row,) = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["subject"], row["suspicion"], row["source"]) == ("00:17:88:01:02:03", 0.5, BUS)
    assert json.loads(row["top_flows"])[0]["server_name"] == "cam.example"


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_alerts_are_exported(folder, tmp_path, name):
    options = ("export", "--show", "alerts", "--severity", "high", "--host", "10.0.0.0/8", "--to", tmp_path / name)
    result = run(folder, *options)
    assert (result.returncode, result.stderr) == (0, f"{tmp_path / name}: 1 alerts\n")
    if name == "out.csv":
        with (tmp_path / name).open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert (row["top_uids"], row["suspicion"]) == ("C1 C\ufffd", "")
    else:
        (row,) = parquet.read_table(tmp_path / name).to_pylist()
        assert (row["top_uids"], row["suspicion"]) == (["C1", "C\0"], None)
    assert (row["id"], row["rule"], row["severity"], row["subject"]) == ("c", "malware", "critical", "10.0.1.7")
    assert row["acknowledged_by"] == "anna"


def test_who_saw_to_alerts_is_exported_by_one_word(folder, tmp_path):
    for name in ("out.csv", "out.parquet"):
        assert run(folder, "export", "--show", "alerts", "--to", tmp_path / name).returncode == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["acknowledged_by"] for row in csv.DictReader(file)] == ["", NOBODY, "anna", "", ""]
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["acknowledged_by"].to_pylist() == [None, NOBODY, "anna", None, None]
    assert str(table.schema.field("acknowledged_by").type) == "string"


def test_a_history_of_version_1_is_read_as_it_is(tmp_path):
    shutil.copy(file_of(1), tmp_path / "history.db")
    result = run(tmp_path, "show")
    assert result.returncode == 0
    assert result.stdout.splitlines()[0].startswith("flows: 5, 20")
    assert result.stdout.splitlines()[2].startswith("alerts: none before the next start")
    assert run(tmp_path, "export", "--to", tmp_path / "out.csv").returncode == 0
    result = run(tmp_path, "export", "--show", "alerts", "--to", tmp_path / "alerts.csv")
    assert (result.returncode, "is of an earlier version, and has no alerts" in result.stderr) == (2, True)
    assert not (tmp_path / "alerts.csv").exists()


def test_a_history_of_version_2_is_read_as_it_is(tmp_path):
    shutil.copy(file_of(2), tmp_path / "history.db")
    before = (tmp_path / "history.db").read_bytes()
    result = run(tmp_path, "show")
    assert (result.returncode, result.stdout.splitlines()[2].startswith("alerts: 5, 20")) == (0, True)
    assert run(tmp_path, "export", "--show", "alerts", "--to", tmp_path / "out.csv").returncode == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["acknowledged_us"] != "", row["acknowledged_by"]) for row in rows] == [
        ("a", False, ""), ("b", True, ""), ("c", False, ""), ("d", False, ""), ("e", False, ""),
    ]  # fmt: skip
    assert (tmp_path / "history.db").read_bytes() == before


def test_more_than_a_page_and_a_group_come_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tapline.service.history.export.ROWS_IN_A_GROUP", 700)
    monkeypatch.setattr("tapline.service.history.export.MAX_PAGE", 300)
    assert ROWS_IN_A_GROUP > 700

    async def body(history):
        await keep(history, *((flow(str(number)), verdict()) for number in range(1000)))

    ask(f"sqlite:///{tmp_path / 'history.db'}", body)
    for name in ("out.csv", "out.parquet"):
        options = [
            "history",
            "export",
            "--to",
            str(tmp_path / name),
            "--data-dir",
            str(tmp_path),
            "--history",
            "sqlite",
        ]
        app(options, standalone_mode=False)
    assert parquet.read_table(tmp_path / "out.parquet")["uid"].to_pylist() == [str(number) for number in range(1000)]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1001


def test_what_it_holds_is_told(folder):
    result = run(folder, "show")
    assert result.returncode == 0
    flows, traces, alerts, tries, size = result.stdout.splitlines()
    assert alerts.startswith("alerts: 5, 20")
    assert flows.startswith("flows: 6, 20")
    assert traces.startswith("traces: 1, 20")
    assert tries.endswith(": 0")
    assert size.startswith("in use: 0.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["export", "--to", "out.txt"], "out.txt: expected a name that ends in .csv or .parquet"),
        (["export", "--to", "out.csv", "--host", "x"], "host: expected an address, or a network"),
        (["export", "--to", "out.csv", "--since", "x"], "expected a time such as"),
        (["export", "--to", "out.csv", "--port", "70000"], "`int` <= 65535"),
        (["export", "--to", "out.csv", "--show", "traces", "--port", "53"], "--port is not for traces"),
        (["export", "--to", "out.csv", "--rule", "scan"], "--rule is not for flows"),
        (["export", "--to", "out.csv", "--show", "alerts", "--unknown"], "--unknown is not for alerts"),
        (["export", "--to", "/nonexistent/out.csv"], "No such file or directory"),
    ],
)
def test_what_is_wrong_is_said(folder, tmp_path, options, said):
    result = run(folder, *options)
    assert result.returncode in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_no_history_is_made_where_there_is_none(tmp_path):
    result = run(tmp_path / "nothing", "show")
    assert (result.returncode, "is not a directory" in result.stderr) == (2, True)
    result = run(tmp_path, "show")
    assert (result.returncode, "there is no history at" in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_is_a_sentence(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    options = [
        "history",
        "export",
        "--to",
        str(tmp_path / "a.parquet"),
        "--data-dir",
        str(folder),
        "--history",
        "sqlite",
    ]
    assert app(options, standalone_mode=False) == 2
    assert "pip install 'tapline-traffic[parquet]', or write a .csv" in capsys.readouterr().err
