"""Live traces: verdicts early and final, each window once, what the engine cannot do, and state over a restart."""

import asyncio
import itertools
import os

import pytest

from tapline.models.checkpoint import EarlyVerdict
from tapline.models.trace import TraceSettings
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.traces import live_model as live_module
from tapline.service.traces.live_traces import LiveTraces
from tapline.service.traces.room import Room
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.state_files import Journal
from tapline.service.traces.trace_verdict import WindowKey
from tapline.service.traces.window_state import DAMAGED, JOURNAL, SNAPSHOT, StateError, TraceState, adopt_former
from tapline.service.traces.windows import EarlyRule, TraceWindows, WindowBounds
from tests.logged import capture_logs
from tests.service.traces.fakes import NumpyTraceEngine, read_by, trace_checkpoint, trace_flow

BUS = "ws://sensor:27759"
NOW = 1_000_000


@pytest.fixture
def clock(monkeypatch):
    """The time here, which tests move."""

    class Clock:
        now = float(NOW)

    monkeypatch.setattr(live_module.time, "time", lambda: Clock.now)
    monkeypatch.setattr(live_module, "CHECK_SECONDS", 0.01)
    return Clock


def make_live(engine, delivered, state=None, window_seconds=600.0, **bounds):
    checkpoint = engine.checkpoint
    settings = TraceSettings(window_seconds=window_seconds)
    rule = EarlyRule(checkpoint.early.confidence, checkpoint.early.min_flows)
    windows = TraceWindows(settings, WindowBounds(**bounds), rule)
    traces = LiveTraces(Metrics(), Room(10**6, 10**6), watcher=delivered.append)
    traces.add(windows, TraceScorer(engine), state)
    return traces


def the_model(traces):
    """The only model."""
    (model,) = traces.models.values()
    return model


def play(traces, body):
    async def main():
        traces.start(Supervisor(Metrics()))
        try:
            async with asyncio.timeout(20):
                await body()
        finally:
            await traces.stop()

    asyncio.run(main())
    return traces


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def embedding(number, traces):
    """What the model of `traces` reads of a flow."""
    checkpoint = the_model(traces).checkpoint
    return read_by(checkpoint, number=number)


def value(traces, name, **labels):
    labels = {"model": "devices", **labels}
    return traces._metrics.registry.get_sample_value(name, labels) or 0


def test_a_window_gets_its_verdict_when_its_time_is_over(clock):
    delivered = []
    traces = make_live(NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 2))), delivered, lateness_seconds=60)

    async def body():
        for number in range(3):
            traces.take(BUS, trace_flow(number, NOW + number), embedding(number, traces))
        clock.now = NOW + 655
        await asyncio.sleep(0.05)
        assert delivered == []
        clock.now = NOW + 665
        await until(lambda: delivered)

    play(traces, body)
    (trace,) = delivered
    assert (trace.subject, trace.flows, trace.verdict.final, trace.source) == ("10.0.0.5", 3, True, BUS)
    assert (trace.start_us, trace.end_us) == (NOW * 1_000_000, (NOW + 600) * 1_000_000)
    assert sum(flow.share for flow in trace.top_flows) == pytest.approx(1, abs=1e-5)
    assert value(traces, "tapline_trace_windows_closed_total", reason="time") == 1
    assert value(traces, "tapline_trace_flows_total", outcome="flows") == 3
    assert value(traces, "tapline_trace_windows_open") == 0


def test_an_early_verdict_comes_before_the_final_one_and_once_per_label(clock):
    delivered, told = [], []
    engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(0.0, 2)))
    traces = make_live(engine, delivered)
    traces.deliver_to(BUS, told.append)

    async def body():
        for number in range(40):
            traces.take(BUS, trace_flow(number, NOW + number), embedding(number, traces))
            await asyncio.sleep(0)
        await until(lambda: delivered)
        await traces.finish(BUS)

    play(traces, body)
    *early, final = delivered
    assert final.verdict.final
    assert final.flows == 40
    assert early
    assert not any(trace.verdict.final for trace in early)
    assert {trace.flows for trace in early} <= {2, 4, 8, 16, 32}
    labels = [trace.verdict.label for trace in early]
    assert all(one != other for one, other in itertools.pairwise(labels))
    assert told == delivered
    stages = [value(traces, "tapline_trace_verdicts_total", label=label, stage="early") for label in set(labels)]
    assert sum(stages) == len(early)


def test_an_early_verdict_needs_confidence(clock):
    delivered = []
    traces = make_live(NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 1))), delivered)

    async def body():
        for number in range(10):
            traces.take(BUS, trace_flow(number, NOW + number), embedding(number, traces))
        await until(lambda: not the_model(traces).windows.jobs)
        await asyncio.sleep(0.05)

    play(traces, body)
    assert [trace.verdict.final for trace in delivered] == [True]


def test_a_fault_of_the_engine_is_counted_and_the_next_trace_is_scored(clock):
    delivered = []
    engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64)))
    traces = make_live(engine, delivered)

    async def body():
        engine.broken = True
        for number in range(3):
            traces.take(BUS, trace_flow(number, NOW, f"10.0.0.{number}"), embedding(number, traces))
        await traces.finish(BUS)
        engine.broken = False
        traces.take(BUS, trace_flow("next", NOW + 700), embedding(9, traces))
        await traces.finish(BUS)

    play(traces, body)
    assert value(traces, "tapline_trace_failures_total") == 3
    assert [trace.flows for trace in delivered] == [1]


def test_what_is_open_is_given_at_the_end_where_no_state_is_kept(clock):
    delivered = []
    traces = make_live(NumpyTraceEngine(), delivered)

    async def body():
        traces.take(BUS, trace_flow("a", NOW), embedding(1, traces))

    play(traces, body)
    assert [trace.verdict.final for trace in delivered] == [True]


class TestState:
    """A restart goes on with the windows that were open."""

    def run(self, directory, delivered, clock, flows, *, engine=None, kill=False):
        """One run of a service with a state directory; `kill`: it ends without a word after the last snapshot."""
        engine = engine or NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64)))
        traces = make_live(engine, delivered, TraceState(directory, engine.checkpoint), lateness_seconds=60)

        async def main():
            traces.start(Supervisor(Metrics()))
            async with asyncio.timeout(20):
                for flow in flows:
                    traces.take(BUS, flow, embedding(int(flow.uid), traces))
                await asyncio.sleep(0.05)
                if kill:
                    the_model(traces)._stopping = True
                    await the_model(traces).part.task
                    the_model(traces)._state.close()
                else:
                    await traces.stop()

        asyncio.run(main())
        return traces

    def test_windows_go_on_and_each_gets_one_verdict(self, tmp_path, clock):
        delivered, alone = [], []
        flows = [trace_flow(n, NOW + 10 * n, f"10.0.0.{n % 3}", complete=n % 4 != 0) for n in range(30)]
        self.run(tmp_path, delivered, clock, flows[:15])
        assert delivered == []
        again = [trace_flow(12, NOW + 120, "10.0.0.0", duration=9)]  # the final form of a flow seen before the restart
        restarted = self.run(tmp_path, delivered, clock, again + flows[15:])
        assert (the_model(restarted).windows.counts.replaced, the_model(restarted).windows.open_flows) == (1, 30)
        clock.now = NOW + 2000
        self.run(tmp_path, delivered, clock, [])
        assert sorted(trace.flows for trace in delivered) == [10, 10, 10]
        self.run(tmp_path, delivered, clock, [])
        assert len(delivered) == 3
        clock.now = float(NOW)
        whole = make_live(NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64))), alone)
        in_order = [
            trace_flow(12, NOW + 120, "10.0.0.0", duration=9) if n == 12 else flow for n, flow in enumerate(flows)
        ]

        async def body():
            for flow in in_order:
                whole.take(BUS, flow, embedding(int(flow.uid), whole))

        play(whole, body)
        assert {trace.subject: trace for trace in alone} == {trace.subject: trace for trace in delivered}

    def test_what_was_given_before_a_kill_is_not_given_again(self, tmp_path, clock):
        delivered = []
        self.run(tmp_path, delivered, clock, [trace_flow(1, NOW), trace_flow(2, NOW + 5, "10.0.0.6")])
        clock.now = NOW + 663.0  # the first window is over, the second is not
        self.run(tmp_path, delivered, clock, [], kill=True)
        assert [trace.subject for trace in delivered] == ["10.0.0.5"]
        assert len(list(Journal(tmp_path / JOURNAL).lines())) == 1
        again = self.run(tmp_path, delivered, clock, [trace_flow(3, NOW + 30), trace_flow(4, NOW + 610)])
        assert [trace.subject for trace in delivered] == ["10.0.0.5"]
        assert the_model(again).windows.counts.late == 1
        clock.now = NOW + 3000
        self.run(tmp_path, delivered, clock, [])
        assert [(trace.subject, trace.flows) for trace in delivered[1:]] == [("10.0.0.6", 1), ("10.0.0.5", 1)]
        assert delivered[2].start_us == (NOW + 600) * 1_000_000

    def test_a_broken_last_line_of_the_journal_is_passed_over(self, tmp_path, clock):
        delivered = []
        self.run(tmp_path, delivered, clock, [trace_flow(1, NOW)])
        (tmp_path / JOURNAL).write_bytes(b'["ws://sensor:27759","10.0.')
        assert self.run(tmp_path, delivered, clock, []).open_flows == 1

    @pytest.mark.parametrize("damage", ["cut", "garbage", "other checkpoint", "other settings"])
    def test_a_state_that_cannot_be_used_is_left_out(self, tmp_path, clock, damage):
        delivered = []
        self.run(tmp_path, delivered, clock, [trace_flow(n, NOW, f"10.0.0.{n}") for n in range(5)])
        path = tmp_path / SNAPSHOT
        changes = {}
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:80])
        elif damage == "garbage":
            path.write_bytes(os.urandom(500))
        elif damage == "other checkpoint":
            changes["version"] = "3"
        else:
            changes["trace"] = TraceSettings(window_seconds=60)
        engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64), **changes))
        traces = self.run(tmp_path, delivered, clock, [trace_flow(9, NOW, "10.0.0.9")], engine=engine)
        assert 1 <= the_model(traces).windows.open_flows < 6
        assert delivered == []

    def test_files_are_private_and_nothing_is_left_beside_them(self, tmp_path, clock):
        self.run(tmp_path / "state", [], clock, [trace_flow(1, NOW)])
        assert {path.name for path in (tmp_path / "state").iterdir()} == {SNAPSHOT, "lock"}
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "state").iterdir())

    def test_a_directory_that_cannot_be_written_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StateError, match="cannot keep the state of traces there"):
            TraceState(tmp_path / "file", trace_checkpoint())

    def test_one_service_holds_a_directory(self, tmp_path):
        checkpoint = trace_checkpoint()
        first = TraceState(tmp_path, checkpoint)
        with pytest.raises(StateError, match="another service keeps its state there"):
            TraceState(tmp_path, checkpoint)
        first.close()
        TraceState(tmp_path, checkpoint).close()

    def test_whatever_byte_of_a_snapshot_changes_the_rest_is_used_and_the_service_starts(self, tmp_path, clock):
        flows = [trace_flow(n, NOW, f"10.0.0.{n}") for n in range(40)]
        self.run(tmp_path, [], clock, flows)
        path = tmp_path / SNAPSHOT
        whole = path.read_bytes()
        kept = []
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64)))
            state = TraceState(tmp_path, engine.checkpoint)
            traces = make_live(engine, [], state)
            kept.append(the_model(traces).windows.open_flows)
            state.close()
            assert (tmp_path / DAMAGED).read_bytes() == path.read_bytes()
        assert kept == sorted(kept)  # all that stands before the damage
        assert kept[0] == 0
        assert kept[-1] >= 38

    def test_a_snapshot_of_more_than_fits_is_used_as_far_as_it_does(self, tmp_path, clock):
        self.run(tmp_path, [], clock, [trace_flow(n, NOW, f"10.0.0.{n}") for n in range(40)])
        engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64)))
        state = TraceState(tmp_path, engine.checkpoint)
        traces = make_live(engine, [], state, max_open_flows=10)
        assert the_model(traces).windows.open_flows == 11
        state.close()

    def test_a_full_disk_costs_notes_and_snapshots_until_there_is_room(self, tmp_path, clock, monkeypatch):
        delivered = []
        engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64)))
        state = TraceState(tmp_path, engine.checkpoint)
        traces = make_live(engine, delivered, state)
        (tmp_path / JOURNAL).symlink_to("/dev/full")

        async def body():
            for error in (OSError(28, "No space left on device"), MemoryError(), OverflowError()):
                with monkeypatch.context() as patch:
                    patch.setattr(os, "fsync", lambda _, error=error: (_ for _ in ()).throw(error))
                    traces.take(BUS, trace_flow("1", NOW), embedding(1, traces))
                    await traces.finish(BUS)
                    await traces.save()
            assert len(delivered) == 1  # of one window; the verdict goes out although it could not be noted
            for name in (JOURNAL, f"{JOURNAL}.old"):
                (tmp_path / name).unlink(missing_ok=True)
            traces.take(BUS, trace_flow("2", NOW + 700), embedding(2, traces))
            await traces.finish(BUS)
            assert len(list(Journal(tmp_path / JOURNAL).lines())) == 1
            await traces.save()
            assert (tmp_path / SNAPSHOT).exists()

        play(traces, body)
        assert len(delivered) == 2
        assert value(traces, "tapline_trace_state_failures_total") == 4

    def test_a_full_disk_costs_the_snapshot_not_the_service(self, tmp_path, clock, monkeypatch):
        delivered = []
        engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64)))
        state = TraceState(tmp_path, engine.checkpoint)
        traces = make_live(engine, delivered, state)

        def full(*_):
            raise OSError(28, "No space left on device")

        async def body():
            traces.take(BUS, trace_flow(1, NOW), embedding(1, traces))
            monkeypatch.setattr(os, "fsync", full)

        play(traces, body)
        assert value(traces, "tapline_trace_state_failures_total") == 1
        assert not (tmp_path / SNAPSHOT).exists()


class TestFormerState:
    """A state directory of the version before, which had one trace model and its files at the top."""

    def former(self, directory, clock):
        """What a service of that version left that was killed once it had given a verdict."""
        TestState().run(directory, [], clock, [trace_flow(n, NOW, f"10.0.0.{n}") for n in range(4)])
        state = TraceState(directory, trace_checkpoint())
        state.closed(WindowKey(BUS, "10.0.0.0", NOW * 1_000_000))
        state.close()
        assert {path.name for path in directory.iterdir()} == {SNAPSHOT, JOURNAL, "lock"}

    def restored(self, directory):
        engine = NumpyTraceEngine(trace_checkpoint(early=EarlyVerdict(1.0, 64)))
        state = TraceState(directory / "devices", engine.checkpoint)
        traces = make_live(engine, [], state)
        state.close()
        return traces.open_flows

    def test_it_goes_on(self, tmp_path, clock):
        self.former(tmp_path, clock)
        adopt_former(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["devices"]
        assert self.restored(tmp_path) == 3
        adopt_former(tmp_path)
        assert self.restored(tmp_path) == 3

    @pytest.mark.parametrize("fault", ["cut", "garbage", "a newer one"])
    def test_what_cannot_be_taken_over_is_set_aside_with_a_warning(self, tmp_path, clock, fault):
        self.former(tmp_path, clock)
        if fault == "a newer one":
            TestState().run(tmp_path / "devices", [], clock, [trace_flow(1, NOW)])
        else:
            whole = (tmp_path / SNAPSHOT).read_bytes()
            (tmp_path / SNAPSHOT).write_bytes(whole[:20] if fault == "cut" else os.urandom(500))
        with capture_logs() as logs:
            adopt_former(tmp_path)
        (line,) = logs
        assert line["log_level"] == "warning"
        assert line["event"] == "open traces of an earlier version were not read"
        assert (tmp_path / DAMAGED).exists()
        assert not (tmp_path / SNAPSHOT).exists()
        assert self.restored(tmp_path) == (fault == "a newer one")

    def test_a_service_of_that_version_that_still_runs_keeps_it(self, tmp_path, clock):
        self.former(tmp_path, clock)
        running = TraceState(tmp_path, trace_checkpoint())
        with pytest.raises(StateError, match="another service keeps its state there"):
            adopt_former(tmp_path)
        running.close()
        assert (tmp_path / SNAPSHOT).exists()
