"""Ports on and off on the command line, and what every form of output says of a port."""

import asyncio
import csv
import io
import json

import msgspec
import pytest
from typer.testing import CliRunner

from tapline.models.verdict import Verdict
from tapline.service.command import cli, watch_command
from tapline.service.command.console import make_console
from tapline.service.command.flow_rows import FlowTable
from tapline.service.command.terminal import label_text
from tapline.service.command.watch import View
from tapline.service.results.records import classified
from tapline.service.results.writers import CSV_COLUMNS, CsvWriter
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.capture import read_capture
from tests.paths import DATA
from tests.service.command.cli_runner import tapline
from tests.service.observing import Told

CAPTURE = DATA / "captures" / "android.pcap"
UNEXPECTED = Verdict("SSH", "SSH", 0.98, False, [], "flow-protocols", "1", port_label="TLS", unexpected_port=True)
EXPECTED = Verdict("TLS", "TLS", 0.98, False, [], "flow-protocols", "1", port_label="TLS", unexpected_port=False)
SILENT = Verdict("TLS", "TLS", 0.98, False, [], "flow-protocols", "1", port_label=None, unexpected_port=False)
WITHOUT = Verdict("TLS", "TLS", 0.98, False, [], "flow-protocols", "1")


@pytest.fixture(scope="module")
def flows():
    return [flow for flow in read_capture(CAPTURE) if flow.payload_lengths and ":" not in flow.orig_h][:3]


def table(flows, width, verdict=UNEXPECTED):
    drawn, console = FlowTable(0), make_console(io.StringIO(), width=width)
    for flow in flows:
        drawn.add(flow, verdict)
    drawn.draw(console)
    return console.file.getvalue()


def live(flows, width, verdict=UNEXPECTED):
    view, console = View(), make_console(io.StringIO(), width=width)
    for flow in flows:
        view.flow("", flow, verdict)
    console.print(view._verdicts(100, width))
    return console.file.getvalue()


@pytest.mark.parametrize("drawn", [table, live])
def test_an_unexpected_port_is_seen_on_every_terminal(drawn, flows):
    wide = drawn(flows, 120)
    assert wide.count("SSH  port says TLS") == len(flows)
    narrow = drawn(flows, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    words = [word for line in narrow.splitlines() for word in line.split()]
    assert [words.count(word) for word in ("SSH", "says", "TLS")] == [len(flows)] * 3
    for verdict in (EXPECTED, SILENT, WITHOUT):
        assert "says" not in drawn(flows, 80, verdict)


def test_a_label_of_a_port_steers_no_terminal():
    evil = Verdict("SSH", "SSH", 0.98, False, [], "m", "1", port_label="\x1b]0;owned\x07", unexpected_port=True)
    assert not {"\x1b", "\x07"} & set(label_text(evil).plain)


@pytest.mark.parametrize(
    ("verdict", "cells", "fields"),
    [
        (UNEXPECTED, ["TLS", "True"], {"port_label": "TLS", "unexpected_port": True}),
        (EXPECTED, ["TLS", "False"], {"port_label": "TLS", "unexpected_port": False}),
        (SILENT, ["", "False"], {"port_label": None, "unexpected_port": False}),
        (WITHOUT, ["", ""], {}),
        (None, ["", ""], None),
    ],
)
def test_forms_for_programs(flows, verdict, cells, fields):
    file = io.StringIO()
    CsvWriter(file).add(flows[0], verdict, "a.pcap")
    header, row = csv.reader(io.StringIO(file.getvalue()))
    assert header == list(CSV_COLUMNS)
    assert row[header.index("port_label") :] == cells
    form = json.loads(msgspec.json.encode(classified(flows[0], verdict, "")))["verdict"]
    assert (form if form is None else {key: form[key] for key in form if "port" in key}) == fields


def command(directory, *arguments):
    result = tapline("classify", CAPTURE, "--traces", "none", "--checkpoint", directory, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.whole
def test_ports_off_on_the_command_line(context_dir):
    def found(*options):
        return [flow["verdict"] for flow in json.loads(command(context_dir, "-f", "json", *options))["flows"]]

    on, off = found(), found("--ports", "off")
    assert found("--ports", "on") == on
    assert on != off
    assert [verdict["port_label"] for verdict in on] == [verdict["port_label"] for verdict in off]
    unexpected = sum(verdict["unexpected_port"] for verdict in on)
    assert unexpected > 0
    assert command(context_dir, "--limit", "0").count("port says") == unexpected
    rows = list(csv.DictReader(io.StringIO(command(context_dir, "-f", "csv"))))
    assert [(row["port_label"], row["unexpected_port"]) for row in rows] == [
        (verdict["port_label"] or "", str(verdict["unexpected_port"])) for verdict in on
    ]
    assert tapline("classify", CAPTURE, "--ports", "no").returncode == 2


@pytest.mark.whole
@pytest.mark.parametrize("ports", ["on", "off"])
def test_live_verdicts_follow_the_setting(context_dir, ports):
    told = Told()

    async def replay():
        settings = Settings(checkpoint=context_dir, traces=["none"], replay=CAPTURE, speed=0, ports=ports)
        service = Service(settings, told)
        async with asyncio.timeout(60), service.running():
            await service.replay.finished.wait()

    asyncio.run(replay())
    seen = {flow.uid: verdict for _, flow, verdict in told.flows}
    expected = json.loads(command(context_dir, "-f", "json", "--ports", ports))["flows"]
    assert len(seen) == len(expected)
    for flow in expected:
        verdict, form = seen[flow["uid"]], flow["verdict"]
        assert (verdict.label, verdict.unknown) == (form["label"], form["unknown"])
        assert (verdict.port_label, verdict.confidence) == (
            form["port_label"],
            pytest.approx(form["confidence"], abs=1e-4),
        )


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [((), "", "on"), (("--ports", "off"), "", "off"), ((), "off", "off"), (("--ports", "on"), "off", "on")],
)
def test_watch_takes_the_flag_or_else_the_environment(monkeypatch, options, environment, expected):
    taken = []
    monkeypatch.setattr(watch_command, "run_watch", lambda settings: taken.append(settings.ports) or 0)
    if environment:
        monkeypatch.setenv("TAPLINE_PORTS", environment)
    result = CliRunner().invoke(cli.app, ["watch", "--replay", str(CAPTURE), *options])
    assert result.exit_code == 0, result.output
    assert taken == [expected]
