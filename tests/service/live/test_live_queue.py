"""The live queue: bounded, and under overload controlled by how long flows have waited. All by a clock of its own."""

import random
from collections import Counter

import msgspec
import numpy as np
import pytest

from tapline.service.live.live_queue import LiveFlow, LiveQueue
from tapline.service.live.overload import BURST
from tests.conftest import make_flows

RATE = 4000.0
"""Flows a second that the simulated engine computes."""

BATCH = 256
(FLOW,) = make_flows(1)


class Clock:
    """Tells the time that it is set to."""

    now = 0.0

    def __call__(self):
        return self.now


class Line:
    """A queue, its clock, and what it shed."""

    def __init__(self, size=20_000, deadline_seconds=0.5):
        self.clock = Clock()
        self.put_flows = 0
        self.shed = Counter()
        self.refused = Counter()
        self.expired = Counter()
        self.expired_at = []
        self.queue = LiveQueue(size, self._on_shed, deadline_seconds=deadline_seconds, clock=self.clock)

    def _on_shed(self, flows, expired):
        assert flows
        (self.expired if expired else self.shed).update(live.subject for live in flows)
        self.expired_at += [self.clock.now] * len(flows) if expired else []

    def put(self, subject="10.0.0.1", at=None, **options):
        self.clock.now = self.clock.now if at is None else at
        flow = msgspec.structs.replace(FLOW, uid=f"C{self.put_flows}")
        self.put_flows += 1
        live = LiveFlow(flow, lambda flow, outcome: None, subject, self.clock.now, **{"urgent": False, **options})
        self.queue.put(live)
        return live

    def offer(self, subject, at):
        """As the live path does: a flow that is refused is not put."""
        self.clock.now = at
        if self.queue.refused([subject])[0]:
            self.refused[subject] += 1
        else:
            self.put(subject, at)

    def take(self, at, number=BATCH):
        self.clock.now = at
        return self.queue.take(number)


def test_in_time_the_oldest_goes_first_and_subjects_take_turns():
    line = Line()
    flows = [line.put("a", 0.0), line.put("a", 0.1), line.put("b", 0.1)]
    assert line.take(0.2) == [flows[0], flows[2], flows[1]]


def test_a_burst_is_computed_to_its_last_flow_however_late():
    line = Line()
    for _ in range(int(4.5 * RATE)):
        line.put(at=0.0)
    taken = 0
    for turn in range(100):
        taken += len(line.take(turn * BATCH / RATE))
    assert (taken, len(line.queue), line.expired.total() + line.shed.total()) == (4.5 * RATE, 0, 0)


def test_what_is_late_steps_back_behind_what_is_in_time():
    line = Line()
    late = [line.put("a", 0.0), line.put("b", 0.0, urgent=True)]
    fresh = [line.put("a", 0.45), line.put("a", 0.55)]
    assert line.take(0.6, 1) == fresh[1:]
    assert line.take(0.6, 1) == fresh[:1]
    assert line.take(0.6) == late[::-1]


def test_in_a_queue_that_stands_what_is_late_is_shed_before_it_is_taken():
    line = Line()
    line.put("flood", 0.0)
    stands = BURST * 0.5
    kept = [line.put("flood", stands - 0.2), line.put("quiet", stands)]
    assert line.take(stands + 0.1) == kept
    assert line.expired == {"flood": 1}


def test_a_queue_that_was_empty_begins_anew():
    line = Line()
    line.put(at=0.0)
    line.take(0.1)
    flow = line.put(at=100.0)
    assert line.take(102.0) == [flow]
    assert not line.expired


def test_a_flow_whose_source_waits_for_room_has_no_deadline():
    line = Line()
    patient = line.put("a", 0.0, expires=False)
    line.put("a", 0.0)
    assert line.take(60.0) == [patient]
    assert line.expired == {"a": 1}


def test_without_a_deadline_flows_wait_as_long_as_there_is_room():
    line = Line(size=4, deadline_seconds=0.0)
    flows = [line.put("a", second) for second in range(5)]
    assert line.take(3600.0) == flows[1:]
    assert (line.shed, line.expired) == ({"a": 1}, {})


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_full_queue_loses_the_oldest_of_those_who_send_most(size):
    line = Line(size)
    for _ in range(5 * size):
        line.put("flood")
    quiet = line.put("quiet", urgent=True)
    assert len(line.queue) <= size
    assert set(line.shed) == {"flood"}
    assert len(line.queue) + line.shed.total() == line.put_flows
    assert line.queue.find(quiet.flow.uid) is quiet


def simulate(load, seconds, subjects, line=None):
    """An engine that computes `RATE` flows a second, batch by batch, and flows that come at random at `load` times that
    rate; each of a subject by `subjects`. The line, and of each flow computed its subject and the seconds from its
    arrival until the end of its batch."""
    generator, line = random.Random(1), line or Line()
    computed, arriving, free = [], generator.expovariate(load * RATE), 0.0
    while arriving < seconds or len(line.queue):
        while arriving <= free and arriving < seconds:
            line.offer(subjects(generator), arriving)
            arriving += generator.expovariate(load * RATE)
        if not len(line.queue):
            free = arriving
            continue
        batch = line.take(free)
        free += max(len(batch), 1) / RATE
        computed += [(live.subject, free - live.arrived_at, free) for live in batch]
        assert len(line.queue) <= line.queue.size
        assert line.put_flows == len(computed) + line.shed.total() + line.expired.total() + len(line.queue)
    return line, computed


def mixed(generator):
    """Half of the flows from one host, the others from some hundred that send unequally much."""
    return "flood" if generator.random() < 0.5 else f"10.0.0.{int(generator.expovariate(0.03)) % 256}"


@pytest.mark.parametrize("load", [1.5, 3.0])
@pytest.mark.parametrize("subjects", [mixed, lambda generator: f"10.{generator.random()}"], ids=["mixed", "all new"])
def test_overload_costs_nothing_of_what_is_computed_and_that_is_fresh(load, subjects):
    seconds = 12.0
    line, computed = simulate(load, seconds, subjects)
    in_time = sum(done <= seconds for _, _, done in computed)
    assert in_time >= 0.99 * seconds * RATE
    assert np.quantile([latency for _, latency, _ in computed], 0.99) < 0.6
    assert line.expired.total() + line.shed.total() + line.refused.total() >= 0.9 * (load - 1) * seconds * RATE
    known = 3.0  # seconds until the overload is, at most
    assert np.quantile([latency for _, latency, done in computed if done > known + 0.5], 0.99) < 0.45
    assert sum(at > known for at in line.expired_at) < 0.3 * (seconds - known) * RATE


def test_at_the_rate_itself_what_is_computed_is_fresh_and_little_is_shed():
    _, computed = simulate(1.02, 30.0, mixed)
    assert sum(done <= 30.0 for _, _, done in computed) >= 0.99 * 30.0 * RATE
    assert np.quantile([latency for _, latency, _ in computed], 0.99) < 0.6


def test_after_a_burst_half_the_rate_costs_no_flow():
    line = Line(size=30_000)
    for _ in range(int(4.5 * RATE)):
        line.put("flood", 0.0)
    line, computed = simulate(0.5, 12.0, mixed, line)
    assert line.shed.total() + line.expired.total() + line.refused.total() == 0
    assert len(computed) == line.put_flows


def test_an_overload_is_over_when_nothing_was_shed_for_a_deadline():
    line, _ = simulate(3.0, 4.0, mixed)
    over = line.clock.now + 0.6
    for number in range(2 * line.queue.size // 3):
        line.offer("flood", over + number * 1e-6)
    assert len(line.queue) == 2 * line.queue.size // 3


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_below_the_rate_nothing_is_shed(load):
    line, computed = simulate(load, 12.0, mixed)
    assert line.expired.total() + line.shed.total() + line.refused.total() == 0
    assert len(computed) == line.put_flows


def test_who_sends_little_is_not_starved_by_a_flood_ten_times_the_rate():
    def subjects(generator):
        return f"quiet {int(100 * generator.random())}" if generator.random() < 0.02 else "flood"

    line, computed = simulate(10.0, 8.0, subjects)
    assert set(line.shed) | set(line.expired) | set(line.refused) == {"flood"}
    assert max(latency for subject, latency, _ in computed if subject != "flood") < 0.5
