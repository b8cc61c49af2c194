"""Traces in a terminal: readable at any width."""

import io

import pytest
from rich.console import Console

from tapline.models.verdict import Verdict
from tapline.service.command.trace_table import TraceTable, recent_traces
from tapline.service.results.records import Summary
from tapline.service.traces.trace_verdict import TopFlow, TraceVerdict

MAC = "74:da:38:80:7a:08"


def trace(flows=7, label="WeMoInsightSwitch", **fields):
    tops = [
        TopFlow(
            f"C{n}", "1:x", 0, 0, "udp", "192.168.100.151", 53399, "239.255.255.250", 1900, 300, "SSDP", 0.3 - n / 10
        )
        for n in range(3)
    ]
    start_us = 1_472_721_330_000_000
    values = {
        "source": "a.pcap", "subject_kind": "mac", "subject": MAC, "start_us": start_us,
        "end_us": start_us + 600_000_000, "flows": flows, "cut": 0,
        "verdict": Verdict(label, label, 0.88, False, [], "m", "1"), "top_flows": tops, **fields,
    }  # fmt: skip
    return TraceVerdict(**values)


def drawn(width, *rows):
    console = Console(file=io.StringIO(), width=width)
    table = TraceTable(0)
    for row in rows:
        table.add(row)
    table.draw(console, Summary("flows", "1"))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_nothing_of_a_trace_is_broken(width):
    lines = drawn(width, trace(), trace(flows=1, subject="10.0.0.5")).splitlines()
    assert max(map(len, lines)) <= width
    for words in (MAC, "WeMoInsightSwitch", "0.88", "2016-09-01 09:15:30 to 09:25:30"):
        assert any(words in line for line in lines)
    narrow = width < 150
    assert any("192.168.100.151:53399 > 239.255.255.250:1900" in line for line in lines)
    assert any(", 7 flows" in line for line in lines) is narrow
    assert any(", 1 flow" in line and "flows" not in line for line in lines) is narrow


def test_live_traces_fit_a_narrow_terminal():
    for width, has_flows in ((80, False), (160, True)):
        console = Console(file=io.StringIO(), width=width)
        console.print(recent_traces([trace(), trace(start_us=10**19, end_us=10**19 + 10**6)], width))
        text = console.file.getvalue()
        assert MAC in text
        assert "09:15:30 to 09:25:30" in text
        assert ("239.255.255.250" in text) is has_flows
        assert "10000000000000 s to" in text
