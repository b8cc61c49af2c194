"""The same capture gives the same trace verdicts: command line, REST, the live path, a real Zeek on the bus."""

import asyncio
import csv
import io
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from tapline.models.trace import make_traces
from tapline.service.api import schemas
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.capture import ReadOptions, read_capture
from tests.paths import ROOT
from tests.service.api.client import api_client
from tests.service.command.cli_runner import tapline
from tests.service.conftest import SETTINGS
from tests.service.observing import Told

CAPTURE = ROOT / "tests" / "data" / "captures" / "android.pcap"
SCRIPTS = ROOT / "zeek" / "scripts"
NDJSON = {"accept": "application/x-ndjson"}

pytestmark = pytest.mark.slow


def comparable(traces):
    """What must agree, by subject and window, and by endpoints instead of uids, which each reader makes itself."""
    return {
        (trace["subject"], trace["start_us"], trace["end_us"]): (
            trace["flows"],
            trace["cut"],
            trace["verdict"]["label"],
            trace["verdict"]["unknown"],
            trace["verdict"]["confidence"],
            [(flow["start_us"], flow["orig_h"], flow["orig_p"], flow["resp_h"]) for flow in trace["top_flows"]],
            [flow["share"] for flow in trace["top_flows"]],
        )
        for trace in traces
    }


def expected_of(commanded):
    """The command line's traces, to rounding."""
    return {
        key: (*same, pytest.approx(confidence, abs=1e-4), flows, pytest.approx(shares, abs=1e-4))
        for key, (*same, confidence, flows, shares) in comparable(commanded["traces"]).items()
    }


@pytest.fixture(
    scope="module", params=["mac_traces_dir", "embedding_traces_dir", "own_traces_dir", "context_traces_dir"]
)
def traces_dir(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def options(checkpoint_dir, traces_dir):
    return ("--checkpoint", checkpoint_dir, "--traces", traces_dir)


@pytest.fixture(scope="module")
def commanded(options):
    result = tapline("classify", CAPTURE, *options, "--format", "json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def client(checkpoint_dir, traces_dir):
    settings = Settings(checkpoint=checkpoint_dir, traces=[str(traces_dir)])
    with api_client(Service(settings)) as client:
        yield client


def live_traces(settings, body):
    """The final verdicts of a service that runs while `body` does."""
    found = []

    async def main():
        service = Service(settings, observer=Told(traces=found))
        async with asyncio.timeout(60), service.running():
            await body(service)
        return service

    service = asyncio.run(main())
    assert service.traces.open_flows == 0
    final = [trace for trace in found if trace.verdict.final]
    assert len({(trace.subject, trace.start_us) for trace in final}) == len(final)
    return [as_json(trace) for trace in final], found


def as_json(trace):
    return json.loads(msgspec.json.encode(trace))


def test_the_command_line_gives_the_traces_of_the_definition(commanded):
    flows = read_capture(CAPTURE, ReadOptions(heads="header"))
    expected = make_traces(flows, SETTINGS)
    assert {(trace["subject"], trace["start_us"], trace["end_us"], trace["flows"], trace["cut"]) for trace in
            commanded["traces"]} == {
        (trace.subject, trace.start_us, trace.end_us, len(trace.flows), trace.cut) for trace in expected
    }  # fmt: skip
    assert len(expected) > 5
    assert any(trace.cut for trace in expected)
    (summary,) = commanded["summary"]["traces"]
    assert (summary["traces"], summary["cut"]) == (len(expected), sum(trace.cut for trace in expected))
    assert summary["flows"] == sum(len(trace.flows) + trace.cut for trace in expected)
    for trace in commanded["traces"]:
        shares = [flow["share"] for flow in trace["top_flows"]]
        assert shares == sorted(shares, reverse=True)
        if trace["flows"] <= 10:
            assert sum(shares) == pytest.approx(1, abs=1e-4)
    uids = {flow["uid"] for flow in commanded["flows"]}
    assert all(flow["uid"] in uids for trace in commanded["traces"] for flow in trace["top_flows"])


def test_rest_gives_what_the_command_line_gives(client, commanded):
    answer = client.post("/v1/classify/pcap", content=CAPTURE.read_bytes()).json()
    schemas.Classified.model_validate({**answer, "flows": []})
    assert comparable(answer["traces"]) == expected_of(commanded)
    assert answer["summary"]["traces"] == commanded["summary"]["traces"]
    lines = client.post("/v1/classify/pcap", content=CAPTURE.read_bytes(), headers=NDJSON).text.splitlines()
    found = [json.loads(line) for line in lines]
    assert comparable(line["trace"] for line in found if "trace" in line) == expected_of(commanded)
    assert found[-1]["summary"]["traces"] == commanded["summary"]["traces"]


def test_flows_from_outside_give_the_same(client, commanded):
    lines = tapline("features", CAPTURE).stdout.splitlines()
    answer = client.post("/v1/classify/flows", json={"flows": [json.loads(line) for line in lines]}).json()
    schemas.Classified.model_validate(answer)
    assert comparable(answer["traces"]) == expected_of(commanded)


def test_formats_say_the_same(options, commanded):
    lines = [json.loads(line) for line in tapline("classify", CAPTURE, *options, "-f", "ndjson").stdout.splitlines()]
    assert comparable(line["trace"] for line in lines if "trace" in line) == expected_of(commanded)
    assert sum("trace" not in line for line in lines) == len(commanded["flows"])
    rows = list(csv.DictReader(io.StringIO(tapline("classify", CAPTURE, *options, "-f", "csv").stdout)))
    assert len(rows) == len(commanded["flows"])
    rows = list(csv.DictReader(io.StringIO(
        tapline("classify", CAPTURE, *options, "-f", "csv", "--show", "traces").stdout
    )))  # fmt: skip
    assert {(row["subject"], row["label"], row["flows"]) for row in rows} == {
        (trace["subject"], trace["verdict"]["label"], str(trace["flows"])) for trace in commanded["traces"]
    }
    assert all(len(row["top_uids"].split()) == len(row["top_shares"].split()) for row in rows)


def test_json_holds_the_lists_that_are_shown(options, commanded):
    traces, flows = (
        json.loads(tapline("classify", CAPTURE, *options, "-f", "json", "--show", show).stdout)
        for show in ("traces", "flows")
    )
    assert (set(traces), set(flows)) == ({"traces", "summary"}, {"flows", "summary"})
    assert comparable(traces["traces"]) == expected_of(commanded)
    assert len(flows["flows"]) == len(commanded["flows"])


def test_the_table_names_subjects_and_says_what_shares_are(options, commanded):
    text = tapline("classify", CAPTURE, *options).stdout
    for trace in commanded["traces"]:
        assert trace["subject"] in text
    assert "not what caused it" in text
    assert f"{len(commanded['traces'])} traces of 66 flows classified by" in text
    alone = tapline("classify", CAPTURE, *options, "--show", "traces").stdout
    assert "By label" not in alone
    assert "Traces" in alone


def test_a_replay_gives_what_the_command_line_gives(checkpoint_dir, traces_dir, commanded):
    async def body(service):
        await service.replay.finished.wait()

    settings = Settings(checkpoint=checkpoint_dir, traces=[str(traces_dir)], replay=CAPTURE, speed=0)
    final, _ = live_traces(settings, body)
    assert comparable(final) == expected_of(commanded)


@pytest.mark.zeek
@pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")
def test_zeek_on_the_bus_gives_what_the_command_line_gives(checkpoint_dir, traces_dir, commanded, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def body(service):
        process = await asyncio.create_subprocess_exec(
            "zeek", "-C", "-r", str(CAPTURE), str(SCRIPTS / "replay.zeek"), f"Tapline::listen_port={port}/tcp",
            cwd=tmp_path, env={**os.environ}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert await process.wait() == 0

    settings = Settings(
        checkpoint=checkpoint_dir,
        traces=[str(traces_dir)],
        zeek=[f"ws://127.0.0.1:{port}"],
        trace_lateness_seconds=600,  # a window that closes before a flow of it ends knows the early form of that flow
    )
    final, everything = live_traces(settings, body)
    assert comparable(final) == expected_of(commanded)
    logged = zeek_log(tmp_path / "tapline_trace.log")
    assert {(row["subject"], row["label"], row["flows"]) for row in logged if row["final"] == "T"} == {
        (trace["subject"], trace["verdict"]["label"], str(trace["flows"])) for trace in final
    }
    assert len(logged) == len(everything)
    uids = {row["uid"] for row in zeek_log(tmp_path / "conn.log")}
    assert all(uid in uids for row in logged for uid in row["top_uids"].split(","))


def zeek_log(path: Path) -> list[dict[str, str]]:
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    (names,) = (line[1:] for line in lines if line[0] == "#fields")
    return [dict(zip(names, line, strict=True)) for line in lines if not line[0].startswith("#")]
