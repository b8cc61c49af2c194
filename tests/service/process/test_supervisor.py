"""Long-lived parts: whatever one dies of, it runs again, it is counted, and red is shown while it is down."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest

from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.bus.events import BusEvent, Count, EventError, FlowsEvent, Stats
from tests.batches import flows_event
from tests.conftest import make_trace_checkpoint
from tests.paths import ROOT
from tests.service.sources.bus.sensors import AcknowledgingSensor
from tests.service.sources.bus.test_events import FLOW, FLOW_ARGS

pytestmark = pytest.mark.whole

KINDS = [
    ValueError, KeyError, OSError, OverflowError, RecursionError, MemoryError, UnicodeError, ArithmeticError,
    AssertionError, StopAsyncIteration, asyncio.CancelledError, EventError,
]  # fmt: skip


class Once:
    """Raises an error at the first call, and passes on every later one."""

    def __init__(self, then, error):
        self.then = then
        self.error = error
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 1:
            raise self.error
        return self.then(*args, **kwargs)


@pytest.mark.parametrize("kind", [*KINDS, lambda text: ExceptionGroup(text, [ValueError(text)])])
def test_a_part_runs_again_after_any_error(kind):
    async def main():
        supervisor = Supervisor(Metrics(), first_pause_seconds=0.001)
        running = asyncio.Event()
        downs = []

        async def run():
            part = supervisor.parts["part"]
            if part.deaths < 2:
                raise kind("fault")
            running.set()
            await asyncio.Event().wait()

        died = supervisor._died

        def note(part, error):
            died(part, error)
            downs.append(supervisor.down())

        supervisor._died = note
        part = supervisor.start("part", run)
        async with asyncio.timeout(20):
            await running.wait()
        assert len(downs) == 2
        assert all(reason.startswith("part is down: ") for reason in downs)
        assert (part.deaths, part.running, supervisor.down(), supervisor.failure) == (2, True, None, None)
        assert supervisor._metrics.registry.get_sample_value("tapline_part_deaths_total", {"part": "part"}) == 2
        assert supervisor._metrics.registry.get_sample_value("tapline_part_up", {"part": "part"}) == 1
        await supervisor.stop([part])
        assert supervisor.parts == {}

    asyncio.run(main())


def test_it_gives_up_on_a_part_that_dies_again_and_again():
    async def main():
        supervisor = Supervisor(Metrics(), deaths_in_a_row=3, first_pause_seconds=0.001)

        async def run():
            raise ValueError("always")

        part = supervisor.start("part", run)
        async with asyncio.timeout(20):
            await supervisor.gave_up.wait()
        assert supervisor.failure == "part died 3 times in a row: ValueError"
        assert supervisor.down() == "part is down: ValueError"
        assert part.deaths == 3

    asyncio.run(main())


def test_a_part_that_comes_to_its_end_is_not_down():
    async def main():
        supervisor = Supervisor(Metrics())

        async def run():
            return

        await supervisor.start("part", run).task
        assert supervisor.down() is None

    asyncio.run(main())


def flow_event(uid, seq, **changes):
    args = [Count(arg) if type(arg) is int else arg for arg in FLOW_ARGS]
    args[2], args[3], args[4], args[5] = Count(seq), True, uid, Count(1_700_000_000_000_000 + seq)
    for index, value in changes.items():
        args[int(index[1:])] = value
    return BusEvent("tapline/flows/0", "Tapline::flow", args)


def batch_event(uid, seq):
    flow = msgspec.structs.replace(FLOW, uid=uid, complete=True, start_us=1_700_000_000_000_000 + seq)
    return flows_event([flow], seq, sensor="tap-1")


class Live:
    """A service with one fake sensor and live traces, and what it says of every flow."""

    def __init__(self, checkpoint_dir, trace_checkpoint, sensor, state_dir):
        settings = Settings(
            checkpoint=checkpoint_dir, traces=[str(trace_checkpoint)], zeek=[sensor.url], state_dir=state_dir,
            shutdown_seconds=2,
        )  # fmt: skip
        self.seen = {}
        self.service = Service(settings, observer=self)
        self.sensor = sensor
        self.said = []
        died = self.service.supervisor._died

        def note(part, error):
            died(part, error)
            self.said.append(self.service.not_ready())

        self.service.supervisor._died = note

    def flow(self, source, flow, verdict):
        self.seen.setdefault(flow.uid, asyncio.Event()).set()

    def trace(self, trace):
        pass

    async def verdict(self, uid):
        await self.seen.setdefault(uid, asyncio.Event()).wait()

    def part(self, start):
        (found,) = [part for part in self.service.supervisor.parts.values() if part.name.startswith(start)]
        return found


@pytest.fixture(scope="module")
def trace_checkpoint(tmp_path_factory):
    return make_trace_checkpoint(tmp_path_factory.mktemp("traces") / "random-tracegram" / "1")


def live(checkpoint_dir, trace_checkpoint, state_dir, body):
    async def main():
        async with asyncio.timeout(60), AcknowledgingSensor().running() as sensor:
            running = Live(checkpoint_dir, trace_checkpoint, sensor, state_dir)
            async with running.service.running():
                await sensor.wait_for_client()
                await body(running)
            return running

    return asyncio.run(main())


def break_live_path(running, error):
    queue = running.service.pipeline._queue
    queue.take = Once(queue.take, error)


def break_engine(running, error):
    queue = running.service.batcher._queue._queue
    queue.take = Once(queue.take, error)


def break_bus(running, error):
    transport = running.service.sensors.sensors[0].source.transport
    transport._drain = Once(transport._drain, error)


def break_traces(running, error):
    windows = running.service.traces.models["random-tracegram"].windows
    windows.close_due = Once(windows.close_due, error)


def break_sink(index):
    def change(running, error):
        sink = running.service.sensors.sensors[0].sinks[index]
        sink._resend_overdue = Once(sink._resend_overdue, error)
        sink._changed.set()

    return change


def break_end(running, error):
    source = running.service.sensors.sensors[0].source
    source.confirm_finished = Once(source.confirm_finished, error)


PARTS = {
    "live path": break_live_path,
    "engine 1": break_engine,
    "bus": break_bus,
    "traces of": break_traces,
    "flow verdicts": break_sink(0),
    "trace verdicts": break_sink(1),
    "end of": break_end,
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind", [ValueError, RecursionError, asyncio.CancelledError])
def test_every_part_of_the_service_runs_again(checkpoint_dir, trace_checkpoint, tmp_path, name, kind):
    async def body(running):
        await running.sensor.publish(batch_event("C1", 1))
        await running.verdict("C1")
        assert running.service.not_ready() is None
        part = running.part(name)
        PARTS[name](running, kind("fault"))
        if name == "bus":
            await running.sensor.cut()
        if name == "end of":
            await running.sensor.publish(BusEvent("tapline/stats", "Tapline::finished", [Count(1), "tap-1", Count(1)]))
        seq = 1
        while not part.deaths:  # until the fault has struck; the flow of the stroke itself may be lost, and counted
            seq += 1
            await running.sensor.publish(batch_event(f"C{seq}", seq))
            await asyncio.sleep(0.02)
        while not part.running:
            await asyncio.sleep(0.01)
        await running.sensor.wait_for_client()
        await running.sensor.publish(batch_event("Clast", seq + 1))
        await running.verdict("Clast")
        assert running.service.not_ready() is None
        if name == "end of":
            while ("Tapline::finished_ack", [1, "tap-1"]) not in running.sensor.received:
                await asyncio.sleep(0.02)

    running = live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body)
    assert len(running.said) == 1
    assert running.said[0].endswith(f"is down: {kind.__name__}")
    counts = running.service.pipeline.counts
    assert counts.received == counts.delivered + counts.superseded + counts.shed + counts.skipped + counts.failed


BAD = [
    flow_event("bad", 2, a8=Count(70_000)),
    flow_event("bad", 2, a7="no address"),
    flow_event("bad", 2, a7="fe80::1%eth0", a9="fe80::2"),
    flow_event("bad", 2, a11="sctp"),
    flow_event("b" * 900_000, 2),
    flow_event("bad", 2, a1="s" * 100_000),
    flow_event("bad", 10**400),
    flow_event("bad", 2, a5=Count(2**63)),
    BusEvent("tapline/flows/" + "0" * 100_000, "Tapline::flow", flow_event("bad", 2).args),
    BusEvent("tapline/stats", "Tapline::stats", [Count(1), "tap-1", *[Count(10**400)] * 13, 0.5]),
    BusEvent("tapline/stats", "Tapline::finished", [Count(1), "f" * 100_000, Count(1)]),
    BusEvent("tapline/flows/0", "Tapline::flow", [Count(10**4000)]),
]
BAD_FRAMES = [
    '{"type":"data-message","topic":"tapline/flows/0","data":' + '[{"data":' * 100_000,
    "[" * 100_000,
    '{"type":"error","code":"' + "x" * 500_000 + '"}',
    '{"type":"data-message","topic":"t","data":[{"data":1},{"data":1},{"data":[{"data":"e"},{"data":[{"data":'
    + "[" * 100_000 + "]" * 100_000 + "}]}]}]}",
]  # fmt: skip


def test_what_is_malformed_costs_itself_and_a_counter(checkpoint_dir, trace_checkpoint, tmp_path):
    async def body(running):
        for event in BAD:
            await running.sensor.publish(event)
        for frame in BAD_FRAMES:
            await running.sensor.send(frame)
        await running.sensor.publish(batch_event("Cgood", 1))
        await running.verdict("Cgood")
        source = running.service.sensors.sensors[0].source
        assert source.state.malformed == len(BAD) + len(BAD_FRAMES)
        assert (source.state.faults, source.state.connections) == (0, 1)
        assert set(source.state.sensors) == {"tap-1"}
        assert running.service.not_ready() is None
        assert running.said == []

    live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body)


def test_a_frame_above_the_limit_costs_its_connection_and_is_counted(checkpoint_dir, trace_checkpoint, tmp_path):
    async def body(running):
        source = running.service.sensors.sensors[0].source
        await running.sensor.publish(flow_event("C" * (1 << 20), 1))
        while source.state.connections < 2:
            await asyncio.sleep(0.01)
        assert source.state.malformed == 1
        await running.sensor.wait_for_client()
        await running.sensor.publish(batch_event("Cgood", 2))
        await running.verdict("Cgood")

    running = live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body)
    assert running.said == []


def test_a_zeek_of_our_own_that_ended_is_told(checkpoint_dir, trace_checkpoint, tmp_path):
    async def body(running):
        ended = SimpleNamespace(is_down=True, failure="Zeek on lo was ended by signal 9 (Killed)")
        running.service.zeeks.append(ended)
        assert running.service.not_ready() == ended.failure
        ended.is_down = False
        assert running.service.not_ready() is None
        running.service.zeeks.remove(ended)

    assert live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body).said == []


def test_a_number_far_ahead_is_another_numbering(checkpoint_dir, trace_checkpoint, tmp_path):
    async def body(running):
        source = running.service.sensors.sensors[0].source
        for index, seq in enumerate((1, 3, 2**52, 2**52 + 2)):
            await running.sensor.publish(batch_event(f"C{index}", seq))
            await running.verdict(f"C{index}")
        account = source.state.sensors["tap-1"]
        assert (account.missed, account.restarts) == (2, 1)

    assert live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body).said == []


def test_a_fault_of_ours_costs_the_event(checkpoint_dir, trace_checkpoint, tmp_path):
    async def body(running):
        source = running.service.sensors.sensors[0].source
        source._stats = Once(source._stats, RecursionError("fault"))
        stats = BusEvent("tapline/stats", "Tapline::stats", [Count(1), "tap-1", *[Count(1)] * 13, 0.5])
        for _ in range(2):
            await running.sensor.publish(stats)
        await running.sensor.publish(batch_event("Cgood", 1))
        await running.verdict("Cgood")
        assert (source.state.faults, source.state.malformed, source.state.connections) == (1, 0, 1)
        assert isinstance(source.state.sensors["tap-1"].stats, Stats)

    live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body)


def test_a_sink_that_fails_costs_its_verdict(checkpoint_dir, trace_checkpoint, tmp_path):
    async def body(running):
        running.flow = Once(running.flow, KeyError("fault"))
        await running.sensor.publish(flow_event("Clost", 1))
        await running.sensor.publish(batch_event("Cgood", 2))
        await running.verdict("Cgood")
        assert running.said == []

    running = live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body)
    assert running.service.metrics.registry.get_sample_value("tapline_failures_total", {"reason": "OTHER"}) == 1


def test_names_are_bounded_whatever_is_sent(checkpoint_dir, trace_checkpoint, tmp_path):
    async def body(running):
        source = running.service.sensors.sensors[0].source
        for index in range(2000):
            flow = flow_event(f"C{index}", index, a1=f"sensor {index} " + "s" * 100)
            source._receive(BusEvent(f"tapline/flows/{index}", flow.name, [_plain(arg) for arg in flow.args]))
            source._receive(BusEvent("t", "Tapline::finished", [1, f"end {index}", 1]))
        assert len(source.state.sensors) == 257
        assert all(len(sensor.last_seq) <= 64 for sensor in source.state.sensors.values())
        assert len(source._finished) <= 256
        assert source.state.malformed == 0

    running = live(checkpoint_dir, trace_checkpoint, tmp_path / "state", body)
    assert isinstance(running, Live)


def _plain(arg):
    return int(arg) if isinstance(arg, Count) else arg


GIVES_UP = """
from tapline.service.live.pipeline import LivePipeline
from tapline.service.process.supervisor import Supervisor
from tapline.service.command.cli import main
import sys

async def fail(self):
    raise RuntimeError("always")

LivePipeline.run = fail
Supervisor.__init__.__kwdefaults__.update(deaths_in_a_row=2, first_pause_seconds=0.001)
sys.argv = ["tapline", "serve", "--port", "0", "--zeek", "ws://127.0.0.1:9", "--traces", "none"]
main()
"""


def test_a_service_that_cannot_be_kept_alive_ends_with_a_sentence_and_status_1():
    found = subprocess.run([sys.executable, "-c", GIVES_UP], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "gave up: live path died 2 times in a row: RuntimeError" in found.stderr
    assert found.returncode == 1


def test_events_of_tests_are_real_ones():
    from tapline.service.sources.bus.events import parse_event

    event = flow_event("C1", 1)
    parsed = parse_event(BusEvent(event.topic, event.name, [_plain(arg) for arg in event.args]))
    assert isinstance(parsed, FlowsEvent)
