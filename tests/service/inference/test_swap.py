"""Trace models are swapped, loaded beside others, unloaded: no flow is lost, none counts twice, each window is scored
by the version that reads its flows, and what becomes of one model is nothing to the others."""

import asyncio
import itertools

import pytest

from tapline.models.checkpoint import CheckpointError, EarlyVerdict, FlowCheckpoint
from tapline.models.trace import TraceSettings
from tapline.service.api import schemas
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.window_state import TraceState
from tapline.service.traces.windows import EarlyRule, TraceWindows, WindowBounds
from tests.conftest import make_checkpoint, make_flows, make_trace_checkpoint
from tests.service.api.client import api_client
from tests.service.observing import Told
from tests.service.traces.fakes import NumpyTraceEngine, read_by, trace_checkpoint, trace_flow
from tests.service.traces.test_classifying import CAPTURE, with_heads
from tests.service.traces.test_live_traces import BUS, NOW, clock, make_live, play, the_model, until, value  # noqa: F401

pytestmark = pytest.mark.slow

LATE = EarlyVerdict(1.0, 64)
"""No early verdicts."""


def engine_of(version):
    return NumpyTraceEngine(trace_checkpoint(version=version, early=LATE))


def embedded(engine, number):
    return read_by(engine.checkpoint, number=number)


def opened(traces, engine):
    """Open windows for another version."""
    rule, model = EarlyRule(1.0, 64), the_model(traces)
    windows = TraceWindows(TraceSettings(window_seconds=300), WindowBounds(60.0), rule, after=model.windows)
    model.open(windows, TraceScorer(engine))


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
        assert await the_model(traces).close_old() == 1
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
    assert (the_model(traces).windows.counts.flows, the_model(traces).windows.counts.late) == (7, 1)
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
        await the_model(traces).close_old()
        if ends == "after":
            traces.take(BUS, final, embedded(new, 1))
        await traces.finish(BUS)

    play(traces, body)
    assert [[flow.uid for flow in trace.top_flows] for trace in delivered] == [["long"], ["next"]]
    assert delivered[0].top_flows[0].duration_us == (0 if ends == "after" else 30_000_000)
    assert (the_model(traces).windows.counts.flows, the_model(traces).windows.counts.replaced) == (2, 1)


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
        await the_model(traces).close_old()

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
    traces = CaptureTraces([scorers[0]], "upload", lambda name: scorers[1] if name == "devices" else None)
    for number in range(6):
        traces.add(trace_flow(number, NOW + number), embedded(scorers[number // 3], number))
    traces.add(trace_flow("lost", NOW), embedded(scorers[2], 7))
    traces.finish()
    found = traces.ready() + traces.ready()
    assert [(trace.verdict.version, trace.flows) for trace in found] == [("1", 3), ("2", 3)]
    (model,) = traces.models
    assert (model.counts.flows, model.counts.late, traces.ready()) == (6, 1, [])
    assert model.checkpoint.version == "1"


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
    trace = {"traces": [str(repository / "devices" / "1")], **changes}
    return Settings(repository=repository, model="random", live_deadline_seconds=0, **trace)


def test_what_becomes_of_one_model_under_traffic_loses_no_flow_of_any(repository):
    delivered, source = [], "ws://127.0.0.1:9"

    async def main():
        service = Service(settings_of(repository, zeek=[source]), observer=Told(traces=delivered))
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

            models = service.traces.models
            task = asyncio.create_task(traffic())
            closed, kept = [], {}
            for name, version in (("devices", "2"), ("others", None), ("devices", "1")):
                await until(lambda: all(model.open_flows for model in models.values()))
                closed.append(await service.load_model(name, version))
            await until(lambda: models["others"].open_flows)
            kept["others"] = models["others"]
            await service.unload_model("others")
            await until(lambda: models["devices"].open_flows)
            swapping = False
            await task
            await service.pipeline.drain(120)
            kept["devices"] = models["devices"]
        return service, sent, closed, kept

    service, sent, closed, models = asyncio.run(main())
    assert service.pipeline.counts.shed == 0
    for name, expected in (("devices", ["1", "2", "1"]), ("others", ["1"])):
        counts = models[name].windows.counts
        own = [trace for trace in delivered if trace.verdict.model == name]
        assert counts.late == counts.unread == 0
        assert sum(trace.flows + trace.cut for trace in own) == counts.flows
        tops = [flow.uid for trace in own for flow in trace.top_flows]
        assert len(set(tops)) == len(tops)
        assert [version for version, _ in itertools.groupby(trace.verdict.version for trace in own)] == expected
    assert models["devices"].windows.counts.flows == sent > models["others"].windows.counts.flows > 0
    assert closed[1] == 0  # beside the one that serves nothing is closed
    assert closed[0] + closed[2] == models["devices"].windows.counts.closed_swapped
    assert min(closed[0], closed[2]) > 0
    assert set(service.trace_models.scorers) == {"devices"}
    assert service.metrics.registry.get_sample_value("tapline_trace_windows_open", {"model": "others"}) == 0


def test_trace_models_are_loaded_swapped_and_unloaded_by_rest(repository):
    with api_client(Service(settings_of(repository))) as client:

        def traces_by(**query):
            answer = client.post("/v1/classify/pcap", content=CAPTURE.read_bytes(), params=query).json()
            found = {(trace["verdict"]["model"], trace["verdict"]["version"]) for trace in answer["traces"]}
            assert {(entry["model"], entry["version"]) for entry in answer["summary"]["traces"]} == found
            return found

        def refusal(name, action="load"):
            answer = client.post(f"/v1/models/{name}/{action}")
            return answer.status_code, answer.json()["error"]["message"]

        def serving():
            return {model["name"] for model in client.get("/v1/models").json()["models"] if model.get("version")}

        assert traces_by() == {("devices", "1")}
        added = client.post("/v1/models/others/load").json()
        schemas.Model.model_validate(added)
        assert (added["kind"], added["version"], added["closed_windows"]) == ("tracegram", "1", 0)
        assert traces_by() == {("devices", "1"), ("others", "1")}
        assert client.post("/v1/models/devices/load", params={"version": "2"}).json()["version"] == "2"
        assert traces_by() == {("devices", "2"), ("others", "1")}
        assert serving() == {"random", "devices", "others"}
        assert traces_by(traces="others") == traces_by(traces=["others"]) == {("others", "1")}
        assert traces_by(traces="others, devices") == traces_by(traces=["devices", "others"]) == traces_by()
        assert traces_by(traces="none") == set()
        for query, status in (("nothing", 404), ("none,others", 422)):
            assert client.post("/v1/classify/pcap", content=b"", params={"traces": query}).status_code == status
        status, message = refusal("misfit")
        assert (status, "reads the embeddings of elsewhere 7" in message) == (422, True)
        assert refusal("endless", "unload")[0] == 404
        assert traces_by() == {("devices", "2"), ("others", "1")}  # what was refused changed nothing
        assert client.post("/v1/models/random/load").json()["version"] == "1"
        assert traces_by() == {("devices", "2"), ("others", "1")}  # a flow model loaded later serves the same traces
        for name in ("devices", "others"):
            assert client.post(f"/v1/models/{name}/unload").status_code == 200
        assert (serving(), traces_by()) == ({"random"}, set())
        assert client.post("/v1/models/others/load").status_code == 200
        assert traces_by() == {("others", "1")}


@pytest.mark.parametrize("action", ["swap", "add", "remove"])
def test_a_change_is_made_to_its_end_when_who_asked_for_it_goes_away(repository, action):
    source = "ws://127.0.0.1:9"

    async def main():
        service = Service(settings_of(repository, zeek=[source]))
        change = {
            "swap": lambda: service.load_model("devices", "2"),
            "add": lambda: service.load_model("others"),
            "remove": lambda: service.unload_model("devices"),
        }[action]
        async with asyncio.timeout(60), service.running():
            replace, reached = service.models.replace_classifiers, asyncio.Event()

            async def held(classifiers):
                reached.set()
                await asyncio.sleep(0)
                await replace(classifiers)

            service.models.replace_classifiers = held
            task = asyncio.create_task(change())
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            found = (await service.batcher.submit(with_heads(make_flows(1))))[0].features
            names = {f"{each.checkpoint.name} {each.checkpoint.version}" for each in found}
            assert names == {f"{model.name} {model.checkpoint.version}" for model in service.traces.models.values()}
            assert all(len(model._versions) == 1 for model in service.traces.models.values())
            return names

    expected = {"swap": {"devices 2"}, "add": {"devices 1", "others 1"}, "remove": set()}
    assert asyncio.run(main()) == expected[action]


def test_a_client_that_goes_away_while_it_loads_a_flow_model_costs_nobody_a_verdict(repository, engine):
    async def main():
        service = Service(settings_of(repository))
        async with asyncio.timeout(60), service.running():
            service.classifier.network.engine = engine
            engine.gate.clear()
            waiting = service.batcher.submit(make_flows(3))
            old = service.classifier
            task = asyncio.create_task(service.load_model("random"))
            await until(lambda: service.classifier is not old)  # it waits for the old one to finish its batch
            task.cancel()
            asyncio.get_running_loop().call_later(0.05, engine.gate.set)
            with pytest.raises(asyncio.CancelledError):
                await task
            return await waiting

    assert None not in asyncio.run(main())


def test_a_service_without_traces_can_be_given_a_trace_model(repository):
    delivered = []

    async def main():
        service = Service(
            settings_of(repository, traces=["none"], replay=CAPTURE, speed=0), observer=Told(traces=delivered)
        )
        service.replay.run = wait = Held(service.replay.run)
        async with asyncio.timeout(60), service.running():
            assert service.no_live_traces() == "there is no trace model: load one, or start with --traces"
            await service.load_model("others")
            wait.go.set()
            await service.replay.finished.wait()

    asyncio.run(main())
    assert {trace.verdict.model for trace in delivered} == {"others"}


class Held:
    """Runs something once it may."""

    def __init__(self, run):
        self.run, self.go = run, asyncio.Event()

    async def __call__(self):
        await self.go.wait()
        await self.run()


@pytest.mark.parametrize(
    ("settings", "name", "error", "message"),
    [
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
    assert set(service.trace_models.scorers) == {"devices"}
