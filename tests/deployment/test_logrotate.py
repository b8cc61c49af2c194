"""The file for logrotate, run by it on logs as they come."""

import shutil
import subprocess

import pytest

from tests.paths import ROOT

FILE = ROOT / "deploy" / "logrotate" / "tapline"

pytestmark = pytest.mark.skipif(
    (shutil.which("logrotate") or shutil.which("/usr/sbin/logrotate")) is None, reason="needs Debian's logrotate"
)


def rotate(folder, *flags):
    text = FILE.read_text().replace("/var/log/tapline", str(folder))
    told = "systemctl kill --kill-whom=main --signal=HUP tapline.service"
    assert told in text
    configuration = folder / "configuration"
    configuration.write_text(text.replace(told, f"echo told >> {folder}/told"))
    configuration.chmod(0o600)
    command = ["/usr/sbin/logrotate", "--state", folder / "state", *flags, configuration]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_logs_are_rotated_and_the_service_told_once(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir(0o750)
    for name in ("eve.json", "audit.log"):
        (folder / name).write_text("{}\n")
    assert "error" not in rotate(folder, "--force").stderr
    assert not (folder / "eve.json").exists()  # opened anew by the service, with its own rights
    assert len(list(folder.glob("eve.json-*"))) == len(list(folder.glob("audit.log-*"))) == 1
    assert (folder / "told").read_text() == "told\n"


def test_without_logs_nothing_happens(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir(0o750)
    rotate(folder, "--force")
    assert not (folder / "told").exists()
