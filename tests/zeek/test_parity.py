"""The native plugin finds in captures what the scripts find; `python -m tests.zeek.parity` compares more of them."""

import os
import shutil
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.zeek.parity import Parity, Side, captures_of, differences, is_explained
from tests.zeek.published import published

TRACES = ROOT / "zeek" / "tests" / "Traces"
PLUGIN = os.environ.get("ZEEK_PLUGIN_PATH", "")
COUNTS = ("orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes")
"""Of an early publication by the plugin these include the packet that made the flow due."""

FLOW = {"uid": "C1", "seq": 1, "payload_lengths": "12,-30"}


def side(**changes):
    flow = {**FLOW, **changes}
    return Side(counters={"finals": 1}, logs={"tapline_flow": {flow["uid"]: flow}, "ps": {}, "raw": {}})


def test_the_same_is_no_difference():
    assert list(differences(side(), side())) == []


@pytest.mark.parametrize(
    ("native", "kinds"),
    [
        (side(payload_lengths="12"), ["tapline_flow: payload_lengths"]),
        (side(server_name="a.example"), ["tapline_flow: server_name"]),
        (side(uid="C2"), ["tapline_flow: only by the plugin", "tapline_flow: only by the scripts"]),
        (Side(status=1, logs=side().logs, counters={"finals": 1}), ["exit status"]),
        (Side(said=["error"], logs=side().logs, counters={"finals": 1}), ["messages"]),
        (Side(logs=side().logs, counters={"finals": 2}), ["counter finals"]),
    ],
)
def test_whatever_differs_is_named(native, kinds):
    assert sorted(kind for kind, _ in differences(side(), native)) == kinds


def test_only_what_is_known_of_a_capture_is_explained():
    assert is_explained(Path("teredo-udp-in-udp.pcap"), "tapline_flow: heads")
    assert not is_explained(Path("teredo-udp-in-udp.pcap"), "tapline_flow: up")
    assert not is_explained(Path("dns.pcap"), "tapline_flow: heads")


def live(test):
    """Marks a test that needs Zeek and the plugin."""
    for mark in (
        pytest.mark.zeek,
        pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
        pytest.mark.skipif(not PLUGIN, reason="no ZEEK_PLUGIN_PATH with the plugin"),
    ):
        test = mark(test)
    return test


@live
@pytest.mark.parametrize("options", [[], ["Tapline::heads=full", "Tapline::content_bytes=40"]])
@pytest.mark.parametrize("capture", captures_of([TRACES]), ids=lambda path: path.name)
def test_the_same_by_scripts_and_plugin(capture, options):
    scripts, found = Parity(Path(PLUGIN), bare=True, options=options).compare(capture)
    assert scripts.status == 0
    assert found == []


@live
@pytest.mark.parametrize("name", ["tcp-http.pcap", "tls.pcap", "flip-ntp.pcap", "gap.pcap", "tunnel-vxlan.pcap"])
@pytest.mark.parametrize("options", [[], ["Tapline::early_packets=2", "Tapline::publish_without_payload=T"]])
def test_the_same_is_published(name, options):
    by_scripts, stats = published(TRACES / name, options=options)
    by_plugin, native_stats = published(TRACES / name, Path(PLUGIN), options)
    assert by_scripts
    assert by_plugin.keys() == by_scripts.keys()
    for (uid, final), flow in by_plugin.items():
        counts = {} if final else {name: by_scripts[uid, final][name] for name in COUNTS}
        assert flow | counts == by_scripts[uid, final]
        assert all(counts[name] <= flow[name] for name in counts)
    assert native_stats == stats


@live
def test_a_connection_that_zeek_skips_is_published_early(tmp_path):
    skip = tmp_path / "skip.zeek"
    skip.write_text("event new_connection(c: connection) { skip_further_processing(c$id); }")
    options = [str(skip), "Tapline::early_packets=2", "Tapline::early_interval=0sec"]
    found, _ = published(TRACES / "tls.pcap", Path(PLUGIN), options)
    assert [len(flow["payload_lengths"]) for (_, final), flow in found.items() if not final] == [2]
