"""Verdicts on flows go back in the newest form that the sensor said it takes, since it is connected."""

import pytest

from tapline.service.live.sensors import Sensors
from tapline.service.metrics import Metrics
from tapline.service.sources.bus.answers import VerdictRow
from tapline.service.sources.bus.events import STATS_TOPIC, BusEvent
from tapline.service.sources.bus.transport import Connected, TlsFiles

ROW = VerdictRow("C1", "1:x", "10.0.0.1", 1, "10.0.0.2", 2, "udp", "dns", 0.5, False, True, "m", "1")


def takes(verdicts):
    return BusEvent(STATS_TOPIC, "Tapline::takes_verdicts", [1, "tap-1", verdicts])


@pytest.mark.parametrize(
    ("came", "name"),
    [
        ([], "Tapline::verdicts"),
        ([Connected("8.0.10")], "Tapline::verdicts"),
        ([Connected("8.0.10"), takes(1)], "Tapline::verdicts"),
        ([Connected("8.0.10"), takes(2)], "Tapline::verdict_lines"),
        ([Connected("8.0.10"), takes(3)], "Tapline::verdict_lines"),
        ([Connected("8.0.10"), takes(2), Connected("8.0.10")], "Tapline::verdicts"),
    ],
)
def test_the_form_follows_the_sensor(came, name):
    sensors = Sensors(
        ["ws://127.0.0.1:1"], None, Metrics(), tls=TlsFiles(), spool_verdicts=10, observer=None, supervisor=None
    )
    [sensor] = sensors.sensors
    for incoming in came:
        sensor.source._receive(incoming)
    assert sensor.sinks[0]._make_event("service", 1, [ROW]).name == name
    assert sensor.sinks[1]._make_event("service", 1, []).name == "Tapline::trace_verdicts"
