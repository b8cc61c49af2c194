"""Two trace models on the same flows: the same verdicts of both on every path, and neither suffers from the other."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
from functools import partial

import numpy as np
import pytest

from tapline.models.checkpoint import EarlyVerdict, Suspicion, Unknown
from tapline.models.trace import TraceSettings, make_traces
from tapline.models.trace_context import SIZES
from tapline.service.api import schemas
from tapline.service.engines.thread import EngineThread
from tapline.service.metrics import Metrics
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.bus.events import BusEvent, Count
from tapline.service.sources.capture import ReadOptions, read_capture
from tapline.service.traces.live_traces import LiveTraces
from tapline.service.traces.room import Room
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.window_state import SNAPSHOT, TraceState
from tapline.service.traces.windows import EarlyRule, TraceWindows, WindowBounds
from tests.conftest import make_trace_checkpoint
from tests.paths import DATA
from tests.service.api.client import api_client
from tests.service.api.served import Server
from tests.service.command.cli_runner import tapline
from tests.service.conftest import SETTINGS
from tests.service.observing import Told
from tests.service.process.test_supervisor import flow_event
from tests.service.sources.bus.sensors import AcknowledgingSensor
from tests.service.traces.fakes import NumpyTraceEngine, read_by, trace_checkpoint, trace_flow
from tests.service.traces.test_live_traces import BUS, NOW, clock, play, until  # noqa: F401
from tests.service.traces.test_parity import SCRIPTS, as_json, zeek_log

CAPTURES = [DATA / "captures" / "android.pcap", DATA / "traces" / "Aria" / "Setup-A-2-STA.pcap"]
OWN = TraceSettings(subject="originator", window_seconds=60, min_flows=2)


@pytest.fixture(scope="module")
def two_dirs(tmp_path_factory, mac_traces_dir):
    """A model of MACs in windows of 20 seconds, and one of originators in windows of a minute that tells suspicion."""
    directory = tmp_path_factory.mktemp("repository") / "intrusion" / "1"
    make_trace_checkpoint(
        directory, "own", 64, name="intrusion", context=tuple(SIZES), trace=OWN, early=EarlyVerdict(1.0, 2),
        unknown=Unknown(0.3, background=True), suspicion=Suspicion(0.6),
    )  # fmt: skip
    return [str(mac_traces_dir), str(directory)]


def comparable(traces, number=lambda values: values):
    """What must agree, by model, subject and window; uids are each reader's own."""
    return {
        (trace["verdict"]["model"], trace["subject"], trace["start_us"], trace["end_us"]): (
            trace["flows"], trace["cut"], trace["verdict"]["label"], trace["verdict"]["unknown"], trace["suspicious"],
            [(flow["start_us"], flow["orig_h"], flow["orig_p"], flow["resp_h"]) for flow in trace["top_flows"]],
            number([trace["verdict"]["confidence"], trace["suspicion"] or -1.0]),
            number([flow["share"] for flow in trace["top_flows"]]),
        )
        for trace in traces
    }  # fmt: skip


def expected(traces):
    """The same, to rounding."""
    return comparable(traces, lambda values: pytest.approx(values, abs=1e-4))


@pytest.fixture(scope="module", params=CAPTURES, ids=lambda path: path.stem)
def commanded(request, checkpoint_dir, two_dirs):
    """A capture, and what the command line says of it."""
    options = [part for directory in two_dirs for part in ("--traces", directory)]
    result = tapline("classify", request.param, "--checkpoint", checkpoint_dir, *options, "--format", "json")
    assert (result.returncode, result.stderr) == (0, "")
    return request.param, json.loads(result.stdout)


def live(settings, body):
    """The final verdicts of a service that runs while `body` does."""
    found = []

    async def main():
        service = Service(settings, observer=Told(traces=found))
        async with asyncio.timeout(60), service.running():
            await body(service)

    asyncio.run(main())
    return [as_json(trace) for trace in found if trace.verdict.final], found


@pytest.mark.slow
def test_a_model_without_an_encoder_says_beside_one_with_an_encoder_what_each_says_alone(
    checkpoint_dir, own_traces_dir, context_traces_dir
):
    dirs = [str(own_traces_dir), str(context_traces_dir)]

    def said(*some):
        options = [part for directory in some for part in ("--traces", directory)]
        result = tapline("classify", CAPTURES[0], "--checkpoint", checkpoint_dir, *options, "-f", "json")
        assert (result.returncode, result.stderr) == (0, "")
        return json.loads(result.stdout)["traces"]

    both, own, bare = said(*dirs), said(dirs[0]), said(dirs[1])
    assert {trace["verdict"]["model"] for trace in both} == {"random-own", "random-context"}
    assert len(own) == len(bare) > 5
    assert comparable(both) == expected(own + bare)
    with api_client(Service(Settings(checkpoint=checkpoint_dir, traces=dirs))) as client:
        found = client.post("/v1/classify/pcap", content=CAPTURES[0].read_bytes()).json()
    assert comparable(both) == expected(found["traces"])


@pytest.mark.slow
class TestTheSameVerdicts:
    """On every path, of both models."""

    def test_the_command_line_gives_the_windows_of_each_model(self, commanded):
        capture, answer = commanded
        for model, settings in (("random-tracegram", SETTINGS), ("intrusion", OWN)):
            defined = make_traces(read_capture(capture, ReadOptions(heads="header")), settings)
            assert {(trace.subject, trace.start_us, len(trace.flows)) for trace in defined} == {
                (trace["subject"], trace["start_us"], trace["flows"])
                for trace in answer["traces"] if trace["verdict"]["model"] == model
            }  # fmt: skip
            assert defined
        told = {trace["verdict"]["model"]: trace["suspicious"] is not None for trace in answer["traces"]}
        assert told == {"random-tracegram": False, "intrusion": True}
        assert [entry["model"] for entry in answer["summary"]["traces"]] == ["random-tracegram", "intrusion"]

    def test_rest_gives_them(self, commanded, checkpoint_dir, two_dirs):
        capture, answer = commanded
        with api_client(Service(Settings(checkpoint=checkpoint_dir, traces=two_dirs))) as client:
            found = client.post("/v1/classify/pcap", content=capture.read_bytes()).json()
            lines = tapline("features", capture).stdout.splitlines()
            flows = client.post("/v1/classify/flows", json={"flows": [json.loads(line) for line in lines]}).json()
        for each in (found, flows):
            schemas.Classified.model_validate({**each, "flows": []})
            assert comparable(each["traces"]) == expected(answer["traces"])
            assert each["summary"]["traces"] == answer["summary"]["traces"]

    def test_a_replay_gives_them(self, commanded, checkpoint_dir, two_dirs):
        capture, answer = commanded
        settings = Settings(checkpoint=checkpoint_dir, traces=two_dirs, replay=capture, speed=0)
        final, _ = live(settings, lambda service: service.replay.finished.wait())
        assert comparable(final) == expected(answer["traces"])

    @pytest.mark.zeek
    @pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")
    def test_zeek_gives_and_logs_them(self, commanded, checkpoint_dir, two_dirs, tmp_path):
        capture, answer = commanded
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        async def body(service):
            process = await asyncio.create_subprocess_exec(
                "zeek", "-C", "-r", str(capture), str(SCRIPTS / "replay.zeek"), f"Tapline::listen_port={port}/tcp",
                "Tapline::notice_suspicious=T", cwd=tmp_path, env={**os.environ}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert await process.wait() == 0

        settings = Settings(
            checkpoint=checkpoint_dir, traces=two_dirs, zeek=[f"ws://127.0.0.1:{port}"], trace_lateness_seconds=600
        )
        final, everything = live(settings, body)
        assert comparable(final) == expected(answer["traces"])
        logged = zeek_log(tmp_path / "tapline_trace.log")
        assert len(logged) == len(everything)
        flags = {None: "-", True: "T", False: "F"}
        assert {(row["model"], row["subject"], row["suspicious"]) for row in logged if row["final"] == "T"} == {
            (trace["verdict"]["model"], trace["subject"], flags[trace["suspicious"]]) for trace in final
        }
        suspects = {trace["subject"] for trace in final if trace["suspicious"]}
        notices = zeek_log(tmp_path / "notice.log") if suspects else []
        assert {row["src"] for row in notices} == suspects

    def test_the_table_names_the_models(self, commanded, checkpoint_dir, two_dirs):
        capture, _ = commanded
        options = [part for directory in two_dirs for part in ("--traces", directory)]
        text = tapline("classify", capture, "--checkpoint", checkpoint_dir, *options, "--show", "traces").stdout
        for model in ("random-tracegram", "intrusion"):
            assert text.count(model) > 1


def make_two(delivered, *engines, state=None):
    """Live traces of several models in windows of ten minutes."""
    traces = LiveTraces(Metrics(), Room(10**6, 10**6), watcher=delivered.append)
    for engine in engines:
        windows = TraceWindows(TraceSettings(window_seconds=600), WindowBounds(60.0), EarlyRule(1.0, 64))
        own = TraceState(state / engine.checkpoint.name, engine.checkpoint) if state is not None else None
        traces.add(windows, TraceScorer(engine), own)
    return traces


def engine_of(name):
    return NumpyTraceEngine(trace_checkpoint(name=name, early=EarlyVerdict(1.0, 64)))


def test_an_engine_that_hangs_or_fails_holds_up_no_other_model(clock):  # noqa: F811
    delivered, gate = [], threading.Event()
    hanging, failing, good = (engine_of(name) for name in ("hanging", "failing", "good"))
    hanging.score = lambda traces: gate.wait(60)
    failing.broken = True
    traces = make_two(delivered, hanging, failing, good)

    async def body():
        for number in range(3):
            outcome = read_by(hanging.checkpoint, failing.checkpoint, good.checkpoint, number=number)
            traces.take(BUS, trace_flow(number, NOW, f"10.0.0.{number}"), outcome)
        clock.now = NOW + 700
        await until(lambda: len(delivered) == 3)
        assert not gate.is_set()
        gate.set()

    play(traces, body)
    assert {trace.verdict.model for trace in delivered} == {"good"}
    failures = traces._metrics.registry.get_sample_value
    assert failures("tapline_trace_failures_total", {"model": "failing"}) == 3
    assert failures("tapline_trace_failures_total", {"model": "good"}) in (None, 0)


def test_flows_that_an_encoder_could_not_read_are_counted_for_its_model(clock):  # noqa: F811
    delivered, bad, good = [], engine_of("bad"), engine_of("good")
    traces = make_two(delivered, bad, good)

    async def body():
        for number in range(4):
            outcome = read_by(good.checkpoint, number=number)
            unread = read_by(bad.checkpoint, values=np.full(8, np.nan))
            outcome = type(outcome)(None, unread.features + outcome.features)
            traces.take(BUS, trace_flow(number, NOW), outcome)
        await traces.finish(BUS)

    play(traces, body)
    assert [(trace.verdict.model, trace.flows) for trace in delivered] == [("good", 4)]
    count = traces._metrics.registry.get_sample_value
    assert count("tapline_trace_flows_total", {"model": "bad", "outcome": "unread"}) == 4
    assert count("tapline_trace_flows_total", {"model": "good", "outcome": "flows"}) == 4


def test_the_state_of_each_model_is_its_own(clock, tmp_path):  # noqa: F811
    one, other = engine_of("one"), engine_of("other")

    async def body():
        for number in range(3):
            traces.take(BUS, trace_flow(number, NOW), read_by(one.checkpoint, other.checkpoint, number=number))
        traces.take(BUS, trace_flow(9, NOW + 1), read_by(other.checkpoint))

    traces = make_two([], one, other, state=tmp_path)
    play(traces, body)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "other"}
    again = make_two([], other, one, state=tmp_path)
    assert {name: model.open_flows for name, model in again.models.items()} == {"one": 3, "other": 4}
    shutil.copy(tmp_path / "one" / SNAPSHOT, tmp_path / "other" / SNAPSHOT)  # of another model: it is left out
    for model in again.models.values():
        model._state.close()
    mixed = make_two([], one, other, state=tmp_path)
    assert {name: model.open_flows for name, model in mixed.models.items()} == {"one": 3, "other": 0}
    for model in mixed.models.values():
        model._state.close()


@pytest.mark.whole
def test_the_service_says_which_model_hangs(checkpoint_dir, two_dirs):
    gate = threading.Event()

    async def main():
        service = Service(Settings(checkpoint=checkpoint_dir, traces=two_dirs))
        service.supervisor._first_pause_seconds = 0.001
        service.supervisor._deaths_in_a_row = 10**9
        async with asyncio.timeout(60), service.running():
            (encoder,) = (each for each in service.classifier.encoders if each.checkpoints[0].name == "intrusion")
            encoder.thread = EngineThread("encoder", 0.05)
            encoder._engine.embed = lambda flows: gate.wait(60)
            flows = [trace_flow(number, NOW) for number in range(3)]
            found = await service.batcher.submit(flows)
            part = service.supervisor.parts["trace engine intrusion"]
            said = []
            await until(lambda: part.deaths and said.append(service.not_ready()) is None and said[-1])
            other = service.supervisor.parts["trace engine random-tracegram"]
            late = encoder.thread._late
            gate.set()
            await asyncio.to_thread(late.over.wait, 30)
            await until(lambda: part.running)
            return found, said[-1], other.deaths

    found, said, deaths = asyncio.run(main())
    assert said == "trace engine intrusion is down: EngineStalledError"
    assert deaths == 0
    for outcome in found:
        assert outcome.verdict is not None
        assert {each.checkpoint.name: each.data is None for each in outcome.features} == {
            "random-tracegram": False, "intrusion": True,
        }  # fmt: skip


QUICK = "from tapline.service.traces import live_model as m; m.SAVE_SECONDS = m.CHECK_SECONDS = 0.05"
"""A snapshot is due at once."""


@pytest.mark.slow
def test_a_service_that_is_killed_goes_on_with_the_windows_of_both_models(checkpoint_dir, two_dirs, tmp_path):
    state = tmp_path / "state"
    options = ["--state-dir", state, *(part for directory in two_dirs for part in ("--traces", directory))]

    def served(sensor):
        return Server(tmp_path, checkpoint_dir, "--zeek", sensor.url, *options, before=QUICK)

    def open_flows(server):
        status, body = server.ask("GET", "/v1/live")
        assert status == 200
        return {entry["model"]: entry["open_flows"] for entry in json.loads(body)["traces"]}

    def snapshots():
        paths = [state / name / SNAPSHOT for name in ("random-tracegram", "intrusion")]
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]

    def are_newer(before):
        return all(new > old for new, old in zip(snapshots(), before, strict=True))

    def wait_saved(server):
        server.wait(lambda: open_flows(server) == {"random-tracegram": 6, "intrusion": 6})
        for _ in range(2):  # one may have begun before the last flow came
            server.wait(partial(are_newer, snapshots()))

    async def main():
        async with asyncio.timeout(170), AcknowledgingSensor().running() as sensor:
            server = await asyncio.to_thread(served, sensor)
            try:
                await sensor.wait_for_client()
                for number in range(6):
                    host = f"10.0.0.{number % 3}"
                    await sensor.publish(flow_event(f"C{number}", number + 1, a7=host, a9="192.0.2.9"))
                await asyncio.to_thread(wait_saved, server)
            finally:
                server.process.kill()
                server.process.wait()
            while sensor.connections:
                await asyncio.sleep(0.01)
            server = await asyncio.to_thread(served, sensor)
            try:
                await sensor.wait_for_client()
                assert await asyncio.to_thread(open_flows, server) == {"random-tracegram": 6, "intrusion": 6}
                await sensor.publish(BusEvent("tapline/stats", "Tapline::finished", [Count(1), "tap-1", Count(6)]))
                while ("Tapline::finished_ack", [1, "tap-1"]) not in sensor.received:
                    await asyncio.sleep(0.02)
            finally:
                server.process.kill()
                server.process.wait()
            return [row for name, args in sensor.received if name == "Tapline::trace_verdicts" for row in args[3]]

    rows = asyncio.run(main())
    final = sorted((row[12], row[0], row[4]) for row in rows if row[9])
    assert final == [(name, f"10.0.0.{host}", 2) for name in ("intrusion", "random-tracegram") for host in range(3)]
