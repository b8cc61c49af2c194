"""The large capture that measurements read: the same every time, readable, of flows of their own, as large as asked."""

import subprocess
import sys

from tapline.service.sources.capture import CaptureReader
from tests.paths import ROOT

CAPTURES = ROOT / "tests" / "data" / "traces"


def make(out, megabytes, folder=CAPTURES):
    command = [sys.executable, ROOT / "benchmarks" / "make_capture.py", folder, "--out", out, "--megabytes", megabytes]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)


def read(path):
    reader = CaptureReader(path)
    flows = list(reader)
    assert reader.warning is None
    return reader.packets, flows


def test_copies_are_flows_of_their_own(tmp_path):
    first, second = tmp_path / "first.pcap", tmp_path / "second.pcap"
    for out in (first, second):
        assert make(out, 1).returncode == 0
    assert first.read_bytes() == second.read_bytes()
    assert 1e6 <= first.stat().st_size < 1.1e6
    packets, flows = read(first)
    once = sum(sum(1 for _ in CaptureReader(path)) for path in CAPTURES.rglob("*.pcap"))
    assert packets > 1000
    assert len(flows) > 2 * once
    assert len({flow.uid for flow in flows}) == len(flows)


def test_nothing_to_make_it_of(tmp_path):
    done = make(tmp_path / "out.pcap", 1, tmp_path)
    assert done.returncode == 1
    assert "no Ethernet capture with a packet in it" in done.stderr
    assert list(tmp_path.iterdir()) == []
