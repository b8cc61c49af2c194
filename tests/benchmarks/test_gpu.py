"""The measurement of a GPU runs where there is none, says so, and computes what the published network does."""

import re
import subprocess
import sys

import pytest

from tests.paths import DATA, ROOT

pytest.importorskip("transformers", reason="the extra `benchmarks` is not installed")

pytestmark = pytest.mark.whole

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def test_it_is_tried_on_a_cpu(tmp_path):
    command = [sys.executable, SCRIPT, DATA / "captures" / "android.pcap", "--size", "16/1/2/32", "--flows", "8"]
    command += ["--repeats", "1", "--card-sizes", "64", "--precision", "float32", "--profile", tmp_path / "profile"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=True)
    assert "no GPU, the CPU stands in" in done.stdout
    difference = re.search(r"largest difference of logits (\S+)", done.stdout)
    assert difference is not None
    assert float(difference[1]) < 1e-5
    assert "aten::" in (tmp_path / "profile").read_text()
