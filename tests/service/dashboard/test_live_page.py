from types import SimpleNamespace

from tapline.service.dashboard.frame import html
from tapline.service.dashboard.live_page import SENSOR_COLUMNS, _other_rows, _sensor_rows
from tapline.service.sources.bus.events import Stats
from tapline.service.sources.bus.source import SensorState


def rows(*, connected=True, reason="", **sensors):
    state = SimpleNamespace(url="ws://gate:27759", connected=connected, reason=reason, sensors=sensors)
    sensor = SimpleNamespace(source=SimpleNamespace(state=state), pending_verdicts=3)
    return [dict(zip(SENSOR_COLUMNS, map(html, row), strict=True)) for row in _sensor_rows(sensor)]


def test_a_sensor_that_loses_and_lags_is_marked():
    stats = Stats("gate", *[0] * 13, 2.5)
    [row] = rows(gate=SensorState(flows=1200, missed=7, stats=stats, lag_seconds=95.0))
    assert (row["sensor"], row["flows"], row["verdicts waiting"]) == ("gate", "1,200", "3")
    assert "95.0 s" in row["behind"]
    assert all("caution" in row[name] for name in ("behind", "missed", "lost by Zeek"))


def test_a_sensor_that_is_well_and_one_that_cannot_judge_its_loss():
    [row] = rows(gate=SensorState(flows=1, stats=Stats("gate", *[0] * 13, -1.0), lag_seconds=-0.2))
    assert (row["behind"], row["lost by Zeek"], row["missed"]) == ("0 ms", "-", "0")


def test_a_sensor_of_an_earlier_format_is_told_to_be_updated():
    [row] = rows(gate=SensorState(format=1))
    assert "1: update its tapline package" in row["format"]
    assert "caution" in row["format"]
    assert [rows(gate=SensorState(format=number))[0]["format"] for number in (0, 2)] == ["-", "2"]


def test_a_sensor_that_is_gone_says_why_and_foreign_names_are_text():
    [row] = rows(connected=False, reason="connection refused")
    assert "alarm" in row["state"]
    assert "connection refused" in row["state"]
    [row] = rows(**{"<b>gate</b>": SensorState()})
    assert row["sensor"] == "&lt;b&gt;gate&lt;/b&gt;"


def test_sensors_of_other_services_are_told_by_the_history():
    state = SimpleNamespace(sensors={"gate": SensorState()})
    own = [SimpleNamespace(source=SimpleNamespace(state=state))]
    [row] = _other_rows(own, {"roof": 1200, "gate": 7})
    shown = dict(zip(SENSOR_COLUMNS, row, strict=True))
    assert (shown["sensor"], shown["flows"]) == ("roof", "1,200 verdicts in ten minutes")
    assert "of another service" in shown["state"]
