"""Names of servers in a terminal: a column where there is room, and nothing else changes."""

import io

import msgspec
import pytest

from tapline.models.server_name import server_name
from tapline.models.verdict import Verdict
from tapline.service.command.console import make_console
from tapline.service.command.flow_rows import NAME_HEADER, FlowTable
from tapline.service.command.terminal import name_text
from tapline.service.command.watch import RECENT_VERDICTS, View
from tapline.service.sources.capture import read_capture
from tests.paths import DATA

VERDICT = Verdict("TLS", "TLS", 0.98, False, [], "flow-protocols", "1")
WIDTHS = [60, 80, 100, 120, 160]


@pytest.fixture(scope="module")
def flows():
    """As many as a live table shows, of IPv4, most with names."""
    found = [flow for flow in read_capture(DATA / "captures" / "android.pcap") if ":" not in flow.orig_h]
    named = [flow for flow in found if server_name(flow)]
    return sorted(named, key=lambda flow: len(server_name(flow)))[-RECENT_VERDICTS:]


def without_names(flows):
    return [msgspec.structs.replace(flow, orig_bytes=b"", resp_bytes=b"") for flow in flows]


def classified(flows, width):
    table = FlowTable(0)
    for flow in flows:
        table.add(flow, VERDICT)
    console = make_console(io.StringIO(), width=width)
    table.draw(console)
    return console.file.getvalue().splitlines()


def watched(flows, width):
    view = View()
    for flow in flows:
        view.flow("", flow, VERDICT)
    console = make_console(io.StringIO(), width=width)
    console.print(view._verdicts(100, width))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("drawn", [classified, watched])
@pytest.mark.parametrize("width", WIDTHS)
def test_names_take_no_room_from_anything_else(drawn, width, flows):
    lines, plain = drawn(flows, width), drawn(without_names(flows), width)
    assert max(map(len, lines)) <= width
    if not any(NAME_HEADER in line for line in lines):
        assert lines == plain
    else:
        assert len(lines) == len(plain)
        for line, other in zip(lines, plain, strict=True):
            if NAME_HEADER not in line:  # headers are shorter where names stand beside all else
                assert [cell for cell in other.split() if cell not in line.split() and "─" not in cell] == []
    assert any(NAME_HEADER in line for line in lines) is (width >= 120)


@pytest.mark.parametrize("drawn", [classified, watched])
def test_a_wide_terminal_shows_names_whole_and_a_narrower_one_their_ends(drawn, flows):
    wide = "\n".join(drawn(flows, 160))
    assert all(server_name(flow) in wide for flow in flows)
    narrower = "\n".join(drawn(flows, 120))
    assert "semanticlocation-pa.googleapis.com" not in narrower
    assert all(server_name(flow)[-11:] in narrower for flow in flows)


def test_flows_without_names_have_no_column(flows):
    assert NAME_HEADER not in "\n".join(classified(without_names(flows), 160))


def test_the_end_of_a_name_says_most():
    assert name_text("cdn-7.eu.example.org", 12) == "…example.org"
    assert name_text("example.org", 11) == "example.org"


def test_a_name_steers_no_terminal(flows):
    evil = [msgspec.structs.replace(flows[0], server_name="\x1b]0;owned\x07\u202e" + "x" * 200)]
    for drawn in (classified, watched):
        text = "\n".join(drawn(evil, 200))
        assert "xxxx" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
