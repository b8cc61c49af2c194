"""Foreign text on a terminal, in a sheet and in the log: shown, and never in command of it."""

import csv
import io
import json
import os
import subprocess
import sys

import msgspec
import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tapline.models.flow import flow_to_line
from tapline.models.verdict import Verdict
from tapline.service.command.console import Cleaned, make_console
from tapline.service.command.output import TableWriter
from tapline.service.command.terminal import PROGRESS_MIN_BYTES, progress
from tapline.service.results.records import SummaryBuilder
from tapline.service.results.writers import CsvWriter
from tapline.service.sources.capture import ReadOptions
from tapline.service.sources.inputs import open_input
from tests.conftest import make_flows
from tests.service.command.cli_runner import tapline

pytestmark = pytest.mark.whole

EVIL = "[red]x[/red] :smile: \x1b]0;owned\x07\x1b[2J\u202e\n\r"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


def check(text):
    assert "[red]x[/red] :smile:" in text
    assert not {"\x1b]", "\x1b[2J", "\x07", "\u202e"} & {text[i : i + n] for i in range(len(text)) for n in (1, 2, 4)}


def test_a_console_prints_foreign_text_as_it_is_and_steers_by_none_of_it():
    file = Terminal()
    console = make_console(file, width=200)
    table = Table("name")
    table.add_row(EVIL)
    table.add_row(Text(EVIL, style="red"))
    console.print(EVIL)
    console.print(table)
    check(file.getvalue())


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_bar_is_drawn_on_a_terminal_alone_whatever_is_said_of_color(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks do, which keep every line
    path = tmp_path / "flows.ndjson"
    path.write_bytes(msgspec.json.encode(flow_to_line(make_flows(1)[0], "")) + b"\n")
    os.truncate(path, PROGRESS_MIN_BYTES + 1)
    file = kind()
    source = open_input(str(path), "auto", ReadOptions())
    with progress(make_console(file, width=80), "flows", source) as flows:
        assert next(flows).uid == "F0"
    assert ("flows" in file.getvalue()) == (kind is Terminal)


def test_a_live_table_likewise():
    file = Terminal()
    with Live(Cleaned(Text(EVIL)), console=make_console(file, width=200), auto_refresh=False) as live:
        live.update(Cleaned(Text(EVIL)), refresh=True)
    assert file.getvalue().count("[red]x[/red]") >= 2
    assert "\x1b]0" not in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()


@pytest.fixture
def evil_verdict():
    return Verdict(EVIL, EVIL, 0.5, False, [], "model", "1", True)


def test_a_table_of_flows_with_an_evil_label(checkpoint_dir, evil_verdict):
    from tapline.models.checkpoint import read_checkpoint

    file = Terminal()
    writer = TableWriter(file, 10, "flows")
    builder = SummaryBuilder(read_checkpoint(checkpoint_dir))
    for flow in make_flows(2):
        writer.add(flow, evil_verdict, "in")
        builder.add(flow, evil_verdict)
    writer.finish(builder.finish([]))
    assert "\x1b]0" not in file.getvalue()
    assert "\x07" not in file.getvalue()


def test_no_cell_of_a_csv_computes(evil_verdict):
    file = io.StringIO(newline="")
    writer = CsvWriter(file)
    (flow,) = make_flows(1)
    verdict = msgspec.structs.replace(evil_verdict, label='=HYPERLINK("http://192.0.2.1")', model="@model")
    writer.add(msgspec.structs.replace(flow, uid="+1", orig_h="10.0.0.1", server_name="=1+1"), verdict, "-in\x1b")
    header, row = list(csv.reader(io.StringIO(file.getvalue())))
    assert [cell for cell in row if cell[:1] in "=+-@" and cell] == []
    assert row[header.index("label")] == '\'=HYPERLINK("http://192.0.2.1")'
    assert row[header.index("server_name")] == "'=1+1"
    assert row[header.index("input")] == "'-in�"


def test_a_name_with_a_line_end_begins_no_line(tmp_path):
    capture = tmp_path / "ok.pcap\ntapline: ERROR forged"
    capture.write_bytes(b"no capture")
    found = tapline("classify", capture, "--traces", "none")
    assert found.returncode == 1
    assert "forged" in found.stderr + found.stdout
    assert not [line for line in (found.stderr + found.stdout).splitlines() if line.startswith("tapline: ERROR")]


def test_a_bad_line_is_named_without_its_escapes(tmp_path):
    (flow,) = make_flows(1)
    line = {**msgspec.to_builtins(flow_to_line(flow)), "\x1b]0;owned\x07": 1}
    (tmp_path / "flows.ndjson").write_text(json.dumps(line) + "\n" + json.dumps({**line, "proto": EVIL}))
    found = tapline("classify", tmp_path / "flows.ndjson", "--traces", "none")
    assert "2 of its lines are not flows" in found.stderr
    assert "\x1b" not in found.stderr + found.stdout
    assert "\x07" not in found.stderr + found.stdout


LOGS = """
from tapline.service.log_lines import configure_logs, log
configure_logs()
secret = "bytes of traffic"
try:
    raise ValueError("bad \\x1b]0;owned\\x07")
except ValueError as error:
    log.error("event", sensor="evil\\x1b[2J\\nlevel=info event=forged", many=["\\x07"], exc_info=error)
"""


def test_a_log_line_is_one_line_without_escapes_and_without_the_values_of_variables():
    found = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, timeout=60).stderr
    assert found.count("\n") == 1
    assert found.startswith("timestamp=")
    assert "ValueError: bad" in found
    assert not {"\x1b", "\x07"} & set(found)
    assert "bytes of traffic" not in found.replace('secret = "bytes of traffic"', "")


OTHERS = """
import logging
from tapline.service.log_lines import configure_logs
configure_logs()
logging.getLogger("asyncio").warning("one\\nlevel=info event=forged \\x1b[2J %s", "more")
logging.getLogger("asyncio").info("not told")
try:
    raise ValueError("bad")
except ValueError as error:
    logging.getLogger("library").error("it failed", exc_info=error)
"""


def test_what_libraries_warn_of_are_lines_of_the_same_kind():
    found = subprocess.run([sys.executable, "-c", OTHERS], capture_output=True, text=True, timeout=60).stderr
    first, second = found.splitlines()
    assert "level=warning event=" in first
    assert first.endswith("logger=asyncio")
    assert not {"\x1b", "\x07"} & set(found)
    assert 'level=error event="it failed" logger=library exception=' in second
    assert "ValueError: bad" in second


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_takes_one_column_each(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    make_console(file, width=80).print("…\N{REPLACEMENT CHARACTER}ü\u4e2d|")
    shown = file.buffer.getvalue().decode(encoding)
    expected = {"ascii": "~???|", "latin-1": "~?ü?|", "cp1252": "~?ü?|", "utf-8": "…\N{REPLACEMENT CHARACTER}ü\u4e2d|"}
    assert shown.strip() == expected[encoding]
