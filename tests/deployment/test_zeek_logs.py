"""Logs of a Zeek that runs for months are rotated, packed, and removed in time."""

import os
import re
import shutil
import subprocess
import time

import pytest
import yaml

from tests.deployment.test_images import until
from tests.paths import DATA, ROOT

KEEPER = ROOT / "deploy" / "zeek" / "keep-logs"
OPTIONS = ["Log::default_rotation_interval=1hr", "Log::default_rotation_postprocessor_cmd="]
DAY_SECONDS = 86_400


def test_every_zeek_that_writes_logs_is_told():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["zeek"]["command"]
    unit = (ROOT / "deploy" / "systemd" / "tapline-zeek.service").read_text()
    for option in OPTIONS:
        assert option in " ".join(compose)
        assert option in unit


@pytest.mark.zeek
@pytest.mark.skipif(shutil.which("zeek") is None, reason="needs zeek")
def test_rotated_logs_are_packed_and_old_ones_removed(tmp_path):
    ages_days = {"conn.old.log.gz": 20, "conn.new.log.gz": 3, "notes.txt": 20}
    for name, days in ages_days.items():
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - days * DAY_SECONDS,) * 2)
    options = [OPTIONS[0], f"{OPTIONS[1]}{KEEPER}"]
    capture = DATA / "captures" / "android.pcap"
    subprocess.run(["zeek", "-C", "-r", capture, *options], cwd=tmp_path, check=True, timeout=120)

    def waiting():
        """Rotated and not packed yet: Zeek does not wait for what packs."""
        return [path for path in tmp_path.iterdir() if re.search(r"\.\d{4}-[-\d]+\.log$", path.name)]

    until(lambda: not waiting(), 60)
    until(lambda: not (tmp_path / "conn.old.log.gz").exists(), 60)
    there = {path.name for path in tmp_path.iterdir()}
    assert {"conn.new.log.gz", "notes.txt"} <= there
    assert [name for name in there if re.fullmatch(r"dns\..+\.log\.gz", name)]
