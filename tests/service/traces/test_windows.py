"""Windows over flows that come one by one: the definition kept, the bounds kept, nothing counted twice."""

import random

import pytest

from tapline.models.trace import TraceSettings, make_traces
from tapline.service.traces.trace_verdict import trace_flow as kept_flow
from tapline.service.traces.windows import EarlyRule, TraceWindows, WindowBounds
from tests.service.traces.fakes import SECOND, trace_flow

BUS = "ws://sensor:27759"
FEATURES = bytes(16)
NOW = 1_000_000.0
"""The time here: far ahead of the flows, as in a replay."""


def windows(
    *, lateness=60.0, early=None, max_subjects=100, max_open_flows=1000, max_jobs=1000, capture=False, **settings
):
    """Windows of ten seconds over a bus, or over a capture."""
    settings = {"window_seconds": 10, **settings}
    bounds = WindowBounds(lateness, max_subjects, max_open_flows, max_jobs)
    return TraceWindows(TraceSettings(**settings), bounds, early, captures=[BUS] if capture else [])


def add(open_windows, *flows, wall=NOW, source=BUS):
    for flow in flows:
        open_windows.add(source, flow, kept_flow(flow, None, FEATURES), wall)


def jobs(open_windows):
    return [
        (job.key.subject, job.key.start_us // SECOND, [flow.uid for flow in job.flows], job.final)
        for job in open_windows.take_jobs(10_000)
    ]


def closed(open_windows, **when):
    open_windows.close_all(**when)
    return jobs(open_windows)


@pytest.mark.parametrize("window_seconds", [0, 7.5, 600])
@pytest.mark.parametrize("max_flows", [3, 256])
@pytest.mark.parametrize("seed", range(4))
def test_flows_in_any_order_make_the_traces_of_the_definition(window_seconds, max_flows, seed):
    generator = random.Random(seed)
    flows = [
        trace_flow(f"F{n}", generator.uniform(0, 100), f"10.0.0.{generator.randint(1, 4)}", duration=generator.random())
        for n in range(150)
    ]
    settings = {"window_seconds": window_seconds, "max_flows": max_flows, "min_flows": 2}
    open_windows = windows(capture=True, **settings)
    add(open_windows, *flows)
    found = {
        (job.key.subject, job.key.start_us, job.end_us, tuple(flow.uid for flow in job.flows))
        for job in (open_windows.close_all(), open_windows.take_jobs(1000))[1]
    }
    expected = make_traces(flows, TraceSettings(**settings))
    assert found == {
        (trace.subject, trace.start_us, trace.end_us, tuple(flow.uid for flow in trace.flows)) for trace in expected
    }
    assert len(found) >= 4
    assert (open_windows.open_flows, open_windows.open_windows) == (0, 0)
    assert open_windows.counts.flows == 150


def test_cut_flows_are_counted_as_in_the_definition():
    flows = [trace_flow(f"F{n}", n / 10) for n in range(30)]
    open_windows = windows(capture=True, max_flows=4)
    add(open_windows, *flows)
    open_windows.close_all()
    (job,) = open_windows.take_jobs(10)
    assert ([flow.uid for flow in job.flows], job.cut) == (["F26", "F27", "F28", "F29"], 26)
    assert open_windows.counts.cut == 26


def test_a_window_closes_when_no_flow_may_start_in_it_any_more():
    open_windows = windows(lateness=60)
    add(open_windows, trace_flow("a", 100), trace_flow("b", 169.9, "10.0.0.6"))
    open_windows.close_due(NOW)
    assert jobs(open_windows) == []
    add(open_windows, trace_flow("c", 170, "10.0.0.6"))
    open_windows.close_due(NOW)
    assert jobs(open_windows) == [("10.0.0.5", 100, ["a"], True)]


def test_a_flow_within_the_lateness_still_counts_and_one_beyond_is_late():
    open_windows = windows(lateness=60)
    add(open_windows, trace_flow("a", 100), trace_flow("far", 165, "10.0.0.6"), trace_flow("b", 109))
    add(open_windows, trace_flow("farther", 171, "10.0.0.6"))
    open_windows.close_due(NOW)
    assert jobs(open_windows) == [("10.0.0.5", 100, ["a", "b"], True)]
    add(open_windows, trace_flow("late", 109.5), trace_flow("next", 110))
    assert open_windows.counts.late == 1
    assert closed(open_windows) == [("10.0.0.5", 110, ["next"], True), ("10.0.0.6", 165, ["far", "farther"], True)]


def test_an_idle_tap_closes_its_windows_too():
    open_windows = windows(lateness=60)
    add(open_windows, trace_flow("a", NOW - 5), wall=NOW)
    open_windows.close_due(NOW + 64)
    assert jobs(open_windows) == []
    open_windows.close_due(NOW + 70.5)
    assert len(jobs(open_windows)) == 1


def test_one_wrong_clock_does_not_close_the_windows_of_the_others():
    open_windows = windows(lateness=60)
    add(open_windows, trace_flow("a", NOW), trace_flow("future", NOW + 9999, "10.0.0.6"), wall=NOW)
    open_windows.close_due(NOW + 50)
    assert jobs(open_windows) == []


def test_windows_go_on_from_the_first_after_a_silence():
    open_windows = windows(lateness=0)
    add(open_windows, trace_flow("a", 103), trace_flow("b", 147))
    open_windows.close_due(NOW)
    assert jobs(open_windows) == [("10.0.0.5", 103, ["a"], True)]
    assert closed(open_windows) == [("10.0.0.5", 143, ["b"], True)]


def test_the_final_form_of_a_flow_replaces_its_early_one():
    open_windows = windows()
    add(open_windows, trace_flow("a", 1, complete=False), trace_flow("b", 2))
    add(open_windows, trace_flow("a", 1, duration=30))
    open_windows.close_all()
    (job,) = open_windows.take_jobs(10)
    assert [(flow.uid, flow.duration_us, flow.early) for flow in job.flows] == [
        ("a", 30 * SECOND, False), ("b", 0, False),
    ]  # fmt: skip
    assert (open_windows.counts.flows, open_windows.counts.replaced) == (2, 1)


def test_a_final_form_that_was_turned_leaves_the_trace_of_the_other_host():
    open_windows = windows()
    add(open_windows, trace_flow("a", 1, "10.0.0.5", resp="10.0.0.9", complete=False))
    add(open_windows, trace_flow("a", 1, "10.0.0.9", resp="10.0.0.5"))
    assert closed(open_windows) == [("10.0.0.9", 1, ["a"], True)]


def test_a_final_form_without_anything_new_keeps_the_embedding():
    open_windows = windows()
    flow = trace_flow("a", 1, complete=False)
    open_windows.add(BUS, flow, kept_flow(flow, None, bytes(range(16))), NOW)
    open_windows.add(BUS, trace_flow("a", 1, duration=9), None, NOW)
    open_windows.close_all()
    (job,) = open_windows.take_jobs(10)
    (kept,) = job.flows
    assert kept.duration_us == 9 * SECOND
    assert kept.features == bytes(range(16))


def test_a_final_form_after_its_window_counts_for_nothing():
    open_windows = windows(lateness=0)
    add(open_windows, trace_flow("a", 1, complete=False), trace_flow("b", 50, "10.0.0.6"))
    open_windows.close_due(NOW)
    add(open_windows, trace_flow("a", 1, duration=60))
    counts = open_windows.counts
    assert (counts.flows, counts.replaced, counts.late) == (2, 1, 0)
    assert [uids for _, _, uids, _ in jobs(open_windows) + closed(open_windows)] == [["a"], ["b"]]


def test_a_late_flow_is_late_once():
    open_windows = windows(lateness=0)
    add(open_windows, trace_flow("a", 1), trace_flow("b", 50, "10.0.0.6"))
    open_windows.close_due(NOW)
    add(open_windows, trace_flow("x", 2, complete=False), trace_flow("x", 2))
    assert open_windows.counts.late == 1


def test_a_cut_flow_is_cut_once():
    open_windows = windows(max_flows=2)
    add(open_windows, trace_flow("a", 1, complete=False), *(trace_flow(n, n) for n in (2, 3)))
    add(open_windows, trace_flow("a", 1))
    assert (open_windows.counts.cut, open_windows.counts.flows) == (1, 3)
    assert closed(open_windows) == [("10.0.0.5", 1, ["2", "3"], True)]


def test_early_scoring_at_powers_of_two_only():
    open_windows = windows(window_seconds=1000, early=EarlyRule(0.9, 3))
    add(open_windows, *(trace_flow(n, n) for n in range(40)))
    assert [len(uids) for _, _, uids, final in jobs(open_windows) if not final] == [4, 8, 16, 32]
    add(open_windows, trace_flow(1, 1))  # no new flow
    assert jobs(open_windows) == []


def test_an_early_verdict_is_noted_once_per_label():
    open_windows = windows(early=EarlyRule(0.9, 1))
    add(open_windows, trace_flow("a", 1))
    (job,) = open_windows.take_jobs(1)
    assert [open_windows.note_early(job.key, label) for label in ("plug", "plug", "camera")] == [True, False, True]
    open_windows.close_all()
    assert not open_windows.note_early(job.key, "scale")


def test_the_silent_subject_makes_room():
    open_windows = windows(max_subjects=2)
    add(open_windows, trace_flow("a", 1, "h1"), trace_flow("b", 2, "h2"), trace_flow("c", 3, "h1"))
    add(open_windows, trace_flow("d", 4, "h3"))
    assert jobs(open_windows) == [("h2", 2, ["b"], True)]
    assert open_windows.counts.closed_evicted == 1
    assert len(open_windows.subjects) == 2


def test_many_open_flows_close_the_windows_that_end_first():
    open_windows = windows(max_open_flows=3)
    add(open_windows, trace_flow("a", 5, "h1"), trace_flow("b", 1, "h2"), trace_flow("c", 3, "h3"))
    add(open_windows, trace_flow("d", 6, "h1"))
    assert jobs(open_windows) == [("h2", 1, ["b"], True)]
    assert open_windows.open_flows == 3


def test_bounds_hold_whatever_comes():
    generator = random.Random(2)
    open_windows = windows(capture=True, max_subjects=20, max_open_flows=50, max_jobs=30, max_flows=5)
    for number in range(5000):
        subject = f"h{generator.randint(0, 40)}"
        flow = trace_flow(number, generator.uniform(0, 300), subject, complete=generator.random() < 0.5)
        add(open_windows, flow)
        assert open_windows.open_flows <= 50
        assert len(open_windows.subjects) <= 20
        assert len(open_windows.jobs) <= 30
        held = [window for subject in open_windows.subjects.values() for window in subject.windows.values()]
        assert sum(len(window.flows) for window in held) == open_windows.open_flows
        assert len(held) == open_windows.open_windows
    assert len(open_windows._sources[BUS].ends) < 2000
    assert len(open_windows._early_flows) <= 50
    assert open_windows.counts.shed > 0
    assert open_windows.counts.closed_evicted > 100


def test_sources_do_not_mix():
    open_windows = windows(lateness=0)
    add(open_windows, trace_flow("a", 1))
    add(open_windows, trace_flow("b", 500), source="ws://other:1")
    open_windows.close_due(NOW)
    assert jobs(open_windows) == []
    assert closed(open_windows, source=BUS) == [("10.0.0.5", 1, ["a"], True)]
    assert closed(open_windows) == [("10.0.0.5", 500, ["b"], True)]


def test_too_few_flows_are_no_trace_but_counted():
    open_windows = windows(min_flows=2)
    add(open_windows, trace_flow("a", 1))
    assert closed(open_windows) == []
    assert (open_windows.counts.below_min_flows, open_windows.counts.closed_end) == (1, 1)
