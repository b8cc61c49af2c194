"""What came, what is missing and what was refused is counted the same, whatever format flows come in."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.service.metrics import Metrics
from tapline.service.sources.bus.events import BusEvent
from tapline.service.sources.bus.source import BusSource
from tests.batches import flow_event, flows_event, pack_batch, pack_flow
from tests.logged import capture_logs
from tests.service.sources.bus.test_events import FLOW

URL = "ws://192.0.2.1:1"
TOPIC = "tapline/flows/0"


class NoTransport:
    url = URL


class Receiver:
    def __init__(self, take=lambda flow: None, earlier=None, choose=lambda: None):
        self.flows = []
        self.metrics = Metrics()
        self.source = BusSource(
            NoTransport(),
            self.metrics,
            lambda flow: (self.flows.append(flow), take(flow)),
            earlier=earlier,
            choose=choose,
        )

    def take(self, events):
        with capture_logs():
            for event in events:
                args = [int(arg) if isinstance(arg, int) and not isinstance(arg, bool) else arg for arg in event.args]
                self.source._receive(BusEvent(event.topic, event.name, args))
        return self

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def account(self):
        sensors = self.source.state.sensors
        return {
            name: (
                *(getattr(sensor, field) for field in ("flows", "early", "missed", "restarts")),
                self.value("tapline_bus_missed_flows_total", sensor=name),
                self.value("tapline_bus_flows_total", sensor=name, kind="early"),
                self.value("tapline_bus_flows_total", sensor=name, kind="final"),
            )
            for name, sensor in sensors.items()
        }


@st.composite
def sent(draw):
    """Runs of flows of two sensors in two shards: first number, and of each flow whether it is early and in bounds."""
    kinds = st.sampled_from([(True, True), (False, True), (False, False)])
    return [
        (draw(st.sampled_from("ab")), draw(st.sampled_from("01")), draw(st.integers(1, 40)), kept)
        for kept in draw(st.lists(st.lists(kinds, min_size=1, max_size=8), min_size=1, max_size=8))
    ]


def form(early, good):
    return msgspec.structs.replace(FLOW, complete=not early, payload_lengths=[5] if good else [5, 0])


@given(sent())
def test_formats_count_the_same(runs):
    alone = [
        flow_event(form(*kind), seq, sensor=sensor, shard=shard)
        for sensor, shard, first, kinds in runs
        for seq, kind in enumerate(kinds, first)
    ]
    batches = [
        flows_event([form(*kind) for kind in kinds], first, sensor=sensor, shard=shard)
        for sensor, shard, first, kinds in runs
    ]
    one, two = Receiver().take(alone), Receiver().take(batches)
    assert one.account() == two.account()
    assert [flow.payload_lengths for flow in one.flows] == [list(flow.payload_lengths) for flow in two.flows]
    refused = [each.value("tapline_bus_refused_events_total", url=URL, reason="malformed") for each in (one, two)]
    assert refused[0] == refused[1] == one.source.state.malformed == two.source.state.malformed


def test_a_gap_a_refused_flow_and_a_broken_batch_by_their_numbers():
    flows = [FLOW] * 10
    bad = msgspec.structs.replace(FLOW, uid="")
    found = Receiver().take(
        [
            flows_event(flows, 1, sensor="tap-1"),
            flows_event(flows, 14, sensor="tap-1"),  # 11 to 13 never came
            BusEvent(TOPIC, "Tapline::flows", [2, "tap-1", 24, 10, "AAAA"]),  # 24 to 33 are lost
            flows_event([FLOW, bad, FLOW], 34, sensor="tap-1"),  # and 35
        ]
    )
    state = found.source.state
    assert (state.sensors["tap-1"].missed, state.malformed, len(found.flows)) == (3 + 10 + 1, 2, 22)
    assert found.take([flows_event(flows, 1, sensor="tap-1")]).account()["tap-1"][:4] == (32, 32, 14, 1)


@pytest.mark.parametrize("text", [False, True])
def test_flows_that_nobody_wants_to_read_came_and_are_not_missed(text):
    flows = [msgspec.structs.replace(FLOW, uid=f"C{number}", complete=number < 2) for number in range(10)]
    found = Receiver(choose=lambda: lambda glances: [glance.uid == "C3" for glance in glances])
    found.take([flows_event(flows[:8], 1, text=text), flows_event(flows[8:], 12, text=text), flow_event(FLOW, 14)])
    assert found.account()["tap-a"] == (
        11,
        8 + (not FLOW.complete),
        3,
        0,
        3,
        8 + (not FLOW.complete),
        2 + FLOW.complete,
    )
    assert [flow.uid for flow in found.flows] == ["C3", FLOW.uid]
    assert found.source.state.malformed == 0


def test_a_fault_costs_its_flow_and_not_the_others():
    def take(flow):
        if flow.uid == "C1":
            raise RuntimeError("fault")

    flows = [msgspec.structs.replace(FLOW, uid=f"C{number}") for number in range(4)]
    found = Receiver(take).take([flows_event(flows, 1)])
    assert (len(found.flows), found.source.state.faults) == (4, 1)


@pytest.mark.parametrize("text", [False, True])
def test_what_comes_while_the_service_stops_is_counted_by_flow(text):
    found = Receiver()
    found.source.close()
    found.take([flows_event([FLOW] * 5, 1, text=text), flow_event(FLOW, 6)])
    assert found.value("tapline_bus_refused_events_total", url=URL, reason="stopping") == 6
    assert found.flows == []


def test_numbers_go_on_over_a_restart_of_the_service():
    before = Receiver().take([flows_event([FLOW] * 4, 1, sensor="one"), flows_event([FLOW] * 4, 1, sensor="two")])
    before.source.close()
    before.take([flows_event([FLOW] * 2, 5, sensor="one")])  # late, and counted as that
    after = Receiver(earlier=before.source.numbers)
    assert after.source.state.sensors == {}  # none that has sent nothing
    after.take([flows_event([FLOW], 10, sensor="one"), flows_event([FLOW], 1, sensor="three")])
    sensors = after.source.state.sensors
    assert {name: (each.missed, each.restarts) for name, each in sensors.items()} == {"one": (3, 0), "three": (0, 0)}
    assert after.value("tapline_bus_missed_flows_total", sensor="one") == 3
    last = Receiver(earlier=after.source.numbers).take([flows_event([FLOW], 5, sensor="two")])
    assert last.source.state.sensors["two"].missed == 0


def test_what_a_sensor_published_to_nobody_since_its_restart_is_missed():
    found = Receiver().take([flows_event([FLOW] * 20, 1), flows_event([FLOW], 8)])
    state = found.source.state.sensors["tap-a"]
    assert (state.missed, state.restarts) == (7, 1)


def test_a_sensor_that_is_updated_is_followed_in_its_new_format():
    found = Receiver().take([flow_event(FLOW, 7), flows_event([FLOW] * 3, 8)])
    state = found.source.state.sensors["tap-a"]
    assert (state.format, state.flows, state.missed, state.restarts) == (2, 4, 0, 0)


def test_most_flows_of_an_event():
    packed = pack_batch([pack_flow(FLOW)] * 65)
    found = Receiver().take([BusEvent(TOPIC, "Tapline::flows", [2, "s", 1, 65, packed])])
    assert (found.flows, found.source.state.malformed) == ([], 1)
