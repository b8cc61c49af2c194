"""What is open of all trace models together is bounded; a model of long windows does not empty one of short ones."""

from tapline.models.trace import TraceSettings
from tapline.service.traces.room import Room
from tapline.service.traces.trace_verdict import trace_flow as kept_flow
from tapline.service.traces.windows import TraceWindows, WindowBounds
from tests.service.traces.fakes import trace_flow

BUS = "ws://sensor:27759"
NOW = 1_000_000.0


def filled(room, flows, hosts, *, seconds):
    """Windows of each length over the same flows, each flow a second after the one before."""
    models = [TraceWindows(TraceSettings(window_seconds=each), WindowBounds(0.0), room=room) for each in seconds]
    most = [0, 0]
    for number in range(flows):
        flow = trace_flow(number, number, f"10.0.0.{number % hosts}")
        for windows in models:
            windows.add(BUS, flow, kept_flow(flow, None, b""), NOW)
        if number % 20 == 0:
            for windows in models:
                windows.close_due(number)
        most[0] = max(most[0], sum(windows.open_flows for windows in models))
        most[1] = max(most[1], sum(len(windows.subjects) for windows in models))
    return models, most


def test_the_bound_of_flows_is_over_all_models():
    (short, long), most = filled(Room(1000, 100), 500, 3, seconds=(10, 10_000))
    assert 90 <= most[0] <= 100
    assert short.counts.closed_evicted == 0  # its own windows are small: the other gives up what is too much
    assert long.counts.closed_evicted > 0
    for windows in (short, long):
        scored = sum(len(job.flows) for job in windows.take_jobs(10_000))
        assert scored + windows.open_flows == windows.counts.flows == 500 - windows.counts.late


def test_the_bound_of_subjects_is_over_all_models():
    (first, second), most = filled(Room(20, 10_000), 300, 50, seconds=(600, 600))
    assert most[1] == 20
    assert abs(len(first.subjects) - len(second.subjects)) <= 1


def test_windows_that_leave_make_room():
    room = Room(1000, 10)
    (first,), _ = filled(room, 10, 1, seconds=(600,))
    (second,), _ = filled(room, 0, 1, seconds=(600,))
    first.leave()
    flow = trace_flow("a", 0)
    second.add(BUS, flow, kept_flow(flow, None, b""), NOW)
    assert not room.is_full
    assert (first.open_flows, second.open_flows) == (10, 1)
