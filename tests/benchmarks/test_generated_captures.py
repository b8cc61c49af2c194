"""Captures made for measurements of the sensor hold the flows that they are named after."""

import sys

import pytest

from tapline.service.sources.capture import CaptureReader
from tests.paths import ROOT


@pytest.fixture
def generated(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import generated_captures

    yield generated_captures
    sys.modules.pop("generated_captures")


def read(path):
    reader = CaptureReader(path)
    flows = sorted(reader, key=lambda flow: (flow.orig_h, flow.resp_h, flow.orig_p))
    assert reader.warning is None
    return reader.packets, flows


def test_open_connections_are_whole_and_open_together(generated, tmp_path):
    packets, flows = read(generated.open_connections(tmp_path / "open.pcap", 4, 5))
    assert packets == 4 * (3 + 5)
    assert [flow.payload_lengths for flow in flows] == [[100, -100, 100, -100, 100]] * 4
    assert all(flow.conn_state == "S1" and len(flow.orig_bytes) == 256 for flow in flows)
    assert all(flow.resp_bytes == flow.orig_bytes[:200] for flow in flows)
    last_begins = max(flow.start_us for flow in flows)
    assert all(flow.start_us + flow.duration_us > last_begins for flow in flows)
    assert max(flow.start_us + flow.duration_us for flow in flows) - min(flow.start_us for flow in flows) < 40_000_000


def test_a_scan_is_as_many_flows_without_an_answer(generated, tmp_path):
    packets, flows = read(generated.scan(tmp_path / "scan.pcap", 300))
    assert packets == len(flows) == 300
    assert len({flow.resp_h for flow in flows}) == 300
    assert {(flow.conn_state, flow.up, flow.down) for flow in flows} == {("S0", 0, 0)}


@pytest.mark.parametrize(("ip_bytes", "packets", "seconds"), [(46, 14_880, 0.001), (1_500, 8_120, 0.01)])
def test_a_flood_is_ten_gigabits_a_second(generated, tmp_path, ip_bytes, packets, seconds):
    found, flows = read(generated.flood(tmp_path / "flood.pcap", ip_bytes, packets, 10))
    assert found == packets
    assert [flow.orig_ip_bytes for flow in flows] == [packets // 10 * ip_bytes] * 10
    spent = max(flow.start_us + flow.duration_us for flow in flows) - min(flow.start_us for flow in flows)
    assert spent / 1e6 == pytest.approx(seconds, rel=0.01)
