"""Captures to DataFrames, timed: what is told is of the frames that were made, and NFStream need not be there."""

import re
import subprocess
import sys

import pytest

from tests.paths import DATA, ROOT

pytestmark = pytest.mark.whole

SCRIPT = ROOT / "benchmarks" / "dataframe.py"


def test_tapline_alone_where_nfstream_is_not():
    command = [
        sys.executable,
        SCRIPT,
        DATA / "captures" / "android.pcap",
        "--repeat",
        "1",
        "--only",
        "nfstream,read,flows",
        "--nfstream-python",
        "false",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=True)
    assert "tapline alone" in done.stdout
    assert "gives 69 rows, 22 columns, " in done.stdout
    assert "gives 66 rows, 31 columns, 11 labels, " in done.stdout
    rows = re.findall(
        r"^result \| (.*?), android\.pcap \| ([\d.]+) s of CPU, (\d+) MiB at most, (\d+) flows$", done.stdout, re.M
    )
    assert [(what, flows) for what, _, _, flows in rows] == [
        ("tapline.read: flows without verdicts", "69"), ("tapline.classify without traces", "66"),
    ]  # fmt: skip
    assert all(float(cpu) > 0 and int(memory) > 20 for _, cpu, memory, _ in rows)


def test_a_side_that_fails_ends_the_run(tmp_path):
    (tmp_path / "none.pcap").write_bytes(b"no capture")
    command = [sys.executable, SCRIPT, tmp_path / "none.pcap", "--repeat", "1", "--only", "read"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "tapline.read: flows without verdicts: ended with status 1" in done.stderr
