"""The systemd units: systemd takes them, their exposure is as docs/deployment.md says, and they name what there is."""

import re
import shutil
import subprocess

import pytest

from tests.deployment.settings_named import misspelt_settings
from tests.paths import ROOT

UNITS = ROOT / "deploy" / "systemd"
EXPOSURE = {"tapline.service": 1.2, "tapline-zeek.service": 2.3}
"""Most that `systemd-analyze security` may say, of 10; its weights differ a little between versions."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def analyze(*arguments):
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", EXPOSURE)
def test_exposure_is_what_the_page_says(unit):
    said = analyze("security", "--offline=true", "--no-pager", UNITS / unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= EXPOSURE[unit] + 0.2
    assert f"| `{unit}` | {EXPOSURE[unit]} |" in (ROOT / "docs" / "deployment.md").read_text()


@needs_systemd
def test_systemd_takes_the_units(tmp_path):
    """With programs that are there: it says so where they are not, and nothing else."""
    for unit in EXPOSURE:
        text = re.sub(r"(?m)^(ExecStart=)\S+", r"\1/bin/true", (UNITS / unit).read_text())
        (tmp_path / unit).write_text(text)
    said = [
        line
        for line in analyze("verify", *tmp_path.iterdir()).splitlines()
        if str(tmp_path) in line or "tapline" in line
    ]
    assert said == []


def test_every_place_that_names_a_user_names_the_one_that_the_recipe_makes():
    """Shippers, logrotate and keys need a user and a group that are there before the service is, and stay."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    made = re.search(r"useradd --system --user-group .* (\S+)\n", page)
    assert made is not None
    for unit in EXPOSURE:
        text = (UNITS / unit).read_text()
        name = unit.removesuffix(".service")
        assert f"\nUser={name}\nGroup={name}\n" in text
        assert "DynamicUser" not in text
        assert f"user `{name}`" in page or made[1] == name
    assert f"create 0640 {made[1]} {made[1]}\n" in (ROOT / "docs" / "outputs.md").read_text()
    assert f"chgrp {made[1]} " in (ROOT / "docs" / "access.md").read_text()


def test_settings_that_units_name_are_settings():
    assert misspelt_settings("\n".join(path.read_text() for path in UNITS.iterdir())) == []
