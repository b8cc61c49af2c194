"""Another trace model takes the place of the one that serves: no flow is lost, none counts twice, each window is scored
by the model that its flows were embedded for."""

import asyncio
import itertools

import numpy as np
import pytest

from tapline.models.checkpoint import CheckpointError, EarlyVerdict, FlowCheckpoint
from tapline.models.trace import TraceSettings
from tapline.service.api import schemas
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.served import ModelBusyError
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.window_state import TraceState
from tapline.service.traces.windows import EarlyRule, TraceWindows, WindowBounds
from tests.conftest import make_checkpoint, make_flows, make_trace_checkpoint
from tests.service.api.client import api_client
from tests.service.traces.fakes import NumpyTraceEngine, trace_checkpoint, trace_flow
from tests.service.traces.test_classifying import CAPTURE, with_heads
from tests.service.traces.test_live_traces import BUS, NOW, clock, make_live, play, until, value  # noqa: F401

pytestmark = pytest.mark.slow

LATE = EarlyVerdict(1.0, 64)
"""No early verdicts."""


def engine_of(version):
    return NumpyTraceEngine(trace_checkpoint(version=version, early=LATE))


def embedded(engine, number):
    width = engine.checkpoint.network.feature_size
    values = np.random.default_rng(number).normal(size=width).astype(np.float32)
    return FlowOutcome(None, values, engine.checkpoint)


def opened(traces, engine):
    """Open windows for another model."""
    rule = EarlyRule(1.0, 64)
    windows = TraceWindows(TraceSettings(window_seconds=300), WindowBounds(60.0), rule, after=traces.windows)
    traces.open(windows, TraceScorer(engine))


def test_open_windows_get_the_verdict_of_their_own_model(clock):  # noqa: F811
    delivered = []
    old, new = engine_of("1"), engine_of("2")
    traces = make_live(old, delivered)

    async def body():
        for number in range(4):
            traces.take(BUS, trace_flow(number, NOW + number), embedded(old, number))
        opened(traces, new)
        traces.take(BUS, trace_flow(10, NOW + 10), embedded(new, 10))
        traces.take(BUS, trace_flow(4, NOW + 4), embedded(old, 4))  # was on its way
        assert await traces.close_old() == 1
        assert [trace.verdict.version for trace in delivered] == ["1"]
        traces.take(BUS, trace_flow(11, NOW + 11), embedded(new, 11))
        traces.take(BUS, trace_flow(5, NOW + 5), embedded(old, 5))  # much too long on its way: nobody can read it
        await traces.finish(BUS)

    play(traces, body)
    assert [(trace.verdict.version, trace.flows) for trace in delivered] == [("1", 5), ("2", 2)]
    assert [(trace.start_us, trace.end_us) for trace in delivered] == [
        (NOW * 1_000_000, (NOW + 600) * 1_000_000),
        ((NOW + 10) * 1_000_000, (NOW + 310) * 1_000_000),  # the new model's own window
    ]
    assert (traces.windows.counts.flows, traces.windows.counts.late) == (7, 1)
    assert value(traces, "tapline_trace_windows_closed_total", reason="swapped") == 1
    assert value(traces, "tapline_trace_flows_total", outcome="flows") == 7
    assert len(old.scored) == len(new.scored) == 1


@pytest.mark.parametrize("ends", ["before", "between", "after"])
def test_a_flow_that_lives_through_the_swap_counts_once(clock, ends):  # noqa: F811
    delivered = []
    old, new = engine_of("1"), engine_of("2")
    traces = make_live(old, delivered)
    final = trace_flow("long", NOW, duration=30)

    async def body():
        traces.take(BUS, trace_flow("long", NOW, complete=False), embedded(old, 1))
        if ends == "before":
            traces.take(BUS, final, embedded(old, 1))
        opened(traces, new)
        traces.take(BUS, trace_flow("next", NOW + 9), embedded(new, 2))
        if ends == "between":
            traces.take(BUS, final, embedded(new, 1))
        await traces.close_old()
        if ends == "after":
            traces.take(BUS, final, embedded(new, 1))
        await traces.finish(BUS)

    play(traces, body)
    assert [[flow.uid for flow in trace.top_flows] for trace in delivered] == [["long"], ["next"]]
    assert delivered[0].top_flows[0].duration_us == (0 if ends == "after" else 30_000_000)
    assert (traces.windows.counts.flows, traces.windows.counts.replaced) == (2, 1)


def test_the_state_is_that_of_the_new_model(clock, tmp_path):  # noqa: F811
    delivered = []
    old, new = engine_of("1"), engine_of("2")
    traces = make_live(old, delivered, TraceState(tmp_path, old.checkpoint))

    async def body():
        traces.take(BUS, trace_flow(1, NOW), embedded(old, 1))
        await traces.save()
        opened(traces, new)
        traces.take(BUS, trace_flow(2, NOW + 2), embedded(new, 2))
        await traces.save()  # leaves the last snapshot: it could hold the windows of one model only
        await traces.close_old()

    play(traces, body)
    assert [trace.verdict.version for trace in delivered] == ["1"]
    for engine, flows in ((new, 1), (old, 0)):
        windows = TraceWindows(engine.checkpoint.trace, WindowBounds())
        state = TraceState(tmp_path, engine.checkpoint)
        state.load(windows)
        state.close()
        assert windows.open_flows == flows


def test_a_service_that_stops_during_a_swap_gives_the_verdicts(clock, tmp_path):  # noqa: F811
    delivered = []
    old, new = engine_of("1"), engine_of("2")
    traces = make_live(old, delivered, TraceState(tmp_path, old.checkpoint))

    async def body():
        traces.take(BUS, trace_flow(1, NOW), embedded(old, 1))
        opened(traces, new)

    play(traces, body)
    assert [(trace.verdict.version, trace.flows) for trace in delivered] == [("1", 1)]


def test_the_flows_of_a_request_make_traces_of_each_model():
    scorers = [TraceScorer(engine_of(version)) for version in "123"]
    traces = CaptureTraces(scorers[0], "upload", lambda: scorers[1])
    for number in range(6):
        traces.add(trace_flow(number, NOW + number), embedded(scorers[number // 3], number))
    traces.add(trace_flow("lost", NOW), embedded(scorers[2], 7))
    traces.finish()
    found = traces.ready() + traces.ready()
    assert [(trace.verdict.version, trace.flows) for trace in found] == [("1", 3), ("2", 3)]
    assert (traces.counts.flows, traces.counts.late, traces.ready()) == (6, 1, [])
    assert traces.checkpoint.version == "1"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A flow model, and trace models of every encoder: `devices` 1 and 2, `others` 1, and one that fits nothing."""
    root = tmp_path_factory.mktemp("models")
    make_checkpoint(root / "random" / "1")
    settings = TraceSettings(subject="originator", window_seconds=600)
    for name, version, encoder, width in (
        ("devices", "1", "tracegram", 32),
        ("devices", "2", "own", 64),
        ("others", "1", "own", 32),
    ):
        directory = root / name / version
        make_trace_checkpoint(directory, encoder, width, name=name, version=version, trace=settings, early=LATE)
    elsewhere = FlowCheckpoint("elsewhere", "7", "0" * 64)
    make_trace_checkpoint(root / "misfit" / "1", "mm4flow", 64, name="misfit", flow_checkpoint=elsewhere)
    endless = TraceSettings(window_seconds=0)
    make_trace_checkpoint(root / "endless" / "1", name="endless", trace=endless)
    return root


def settings_of(repository, **changes):
    trace = {"trace_checkpoint": repository / "devices" / "1", **changes}
    return Settings(repository=repository, model="random", **trace)


def test_swaps_under_traffic_lose_no_flow(repository):
    delivered, source = [], "ws://127.0.0.1:9"

    async def main():
        service = Service(settings_of(repository, zeek=[source]), trace_watcher=delivered.append)
        sent, swapping = 0, True
        async with asyncio.timeout(180), service.running():

            async def traffic():
                nonlocal sent
                for seed in itertools.takewhile(lambda _: swapping, itertools.count()):
                    for flow in with_heads(make_flows(12, seed)):
                        flow.uid, sent = f"{seed}-{flow.uid}", sent + 1
                        service.pipeline.take(flow, lambda flow, outcome: service.traces.take(source, flow, outcome))
                    await asyncio.sleep(0.01)
                    await until(lambda: service.pipeline.waiting_flows < 200)  # no more than this machine computes

            task = asyncio.create_task(traffic())
            closed = []
            for name, version in (("devices", "2"), ("others", None), ("devices", "1")):
                await until(lambda: service.traces.windows.open_flows)
                closed.append(await service.load_model(name, version))
            await until(lambda: service.traces.windows.open_flows)
            swapping = False
            await task
            await service.pipeline.drain(120)
        return service, sent, closed

    service, sent, closed = asyncio.run(main())
    counts = service.traces.windows.counts
    assert (counts.flows, counts.late, service.pipeline.counts.shed) == (sent, 0, 0)
    assert sum(trace.flows + trace.cut for trace in delivered) == sent
    assert len({flow.uid for trace in delivered for flow in trace.top_flows}) == sum(
        len(trace.top_flows) for trace in delivered
    )
    models = [f"{trace.verdict.model} {trace.verdict.version}" for trace in delivered]
    assert [model for model, _ in itertools.groupby(models)] == ["devices 1", "devices 2", "others 1", "devices 1"]
    assert sum(closed) == counts.closed_swapped
    assert min(closed) > 0
    assert service.trace_scorer.checkpoint.version == "1"


def test_a_trace_model_is_swapped_by_rest(repository):
    with api_client(Service(settings_of(repository))) as client:

        def traces_by():
            answer = client.post("/v1/classify/pcap", content=CAPTURE.read_bytes()).json()
            assert answer["traces"]
            (model,) = {(trace["verdict"]["model"], trace["verdict"]["version"]) for trace in answer["traces"]}
            return model

        def refusal(name, action="load"):
            answer = client.post(f"/v1/models/{name}/{action}")
            return answer.status_code, answer.json()["error"]["message"]

        assert traces_by() == ("devices", "1")
        swapped = client.post("/v1/models/others/load").json()
        schemas.Model.model_validate(swapped)
        assert (swapped["kind"], swapped["version"], swapped["closed_windows"]) == ("tracegram", "1", 0)
        assert traces_by() == ("others", "1")
        serving = {model["name"] for model in client.get("/v1/models").json()["models"] if model.get("version")}
        assert serving == {"random", "others"}
        status, message = refusal("misfit")
        assert (status, "reads the embeddings of elsewhere 7" in message) == (422, True)
        assert refusal("others", "unload")[0] == 409
        assert traces_by() == ("others", "1")  # what was refused changed nothing
        assert client.post("/v1/models/random/load").json()["version"] == "1"
        assert traces_by() == ("others", "1")  # a flow model that is loaded later serves the same traces


@pytest.mark.parametrize(
    ("settings", "name", "error", "message"),
    [
        ({"trace_checkpoint": "none"}, "devices", ModelBusyError, "traces are off since the start"),
        ({"zeek": ["ws://127.0.0.1:9"]}, "endless", CheckpointError, "has no window"),
    ],
)
def test_what_cannot_serve_is_refused(repository, settings, name, error, message):
    async def main():
        service = Service(settings_of(repository, **settings))
        async with asyncio.timeout(180), service.running():
            with pytest.raises(error, match=message):
                await service.load_model(name)
        return service

    service = asyncio.run(main())
    assert service.trace_scorer is None or service.trace_scorer.checkpoint.name == "devices"
