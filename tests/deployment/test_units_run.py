"""The unit of the service under a real systemd, in a container whose init it is: it survives its own hardening."""

import contextlib
import json
import re

import pytest

from tests.deployment.engine import needs_engine
from tests.deployment.test_images import CAPTURE, until
from tests.paths import ROOT

pytestmark = [pytest.mark.whole, pytest.mark.timeout(2400), needs_engine]

UNIT = ROOT / "deploy" / "systemd" / "tapline.service"
RIGHTS = ("SYS_ADMIN", "NET_ADMIN", "SYS_NICE", "SYS_PTRACE", "DAC_READ_SEARCH")
"""What systemd itself needs to make what the unit asks for."""


def made_user():
    """The line of the recipe that makes the user of the unit."""
    [line] = re.findall(r"(?m)^\$ sudo (useradd .*)$", (ROOT / "docs" / "deployment.md").read_text())
    return line


@pytest.fixture
def machine(engine, tmp_path):
    """Runs a command in a container with systemd as its init, in a network of its own."""
    (tmp_path / "Dockerfile").write_text(
        f"FROM debian:bookworm-systemd\nCOPY --from=tapline:1 /opt/tapline /opt/tapline\nRUN {made_user()}\n"
    )
    engine.make_base("debian:bookworm-systemd", ["systemd", "dbus", "passwd", "python3", "ca-certificates"])
    engine.docker("build", "--tag", "machine", tmp_path)
    engine.stop()
    engine.start(apart=True)
    try:
        engine.docker(
            "run", "--detach", "--name=machine", "--network=host", *(f"--cap-add={right}" for right in RIGHTS),
            "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined", "--env=container=docker",
            "--tmpfs=/run", "--tmpfs=/tmp", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
            f"--volume={UNIT}:/etc/systemd/system/tapline.service:ro", "machine", "/lib/systemd/systemd",
        )  # fmt: skip

        def inside(*command, check=True):
            return engine.docker("exec", "machine", *command, check=check)

        try:
            until(lambda: inside("systemctl", "is-system-running", check=False) in ("running", "degraded"), 120)
        except AssertionError:
            pytest.skip("systemd does not start in a container here")
        yield inside
    finally:
        engine.docker("rm", "--force", "machine", check=False)
        engine.stop()
        engine.start()


def show(machine, name):
    return machine("systemctl", "show", "--property", name, "--value", "tapline")


def test_the_service_runs_hardened_reloads_and_ends_in_order(engine, machine):
    machine("systemctl", "start", "tapline")
    url = "http://127.0.0.1:8000"
    with contextlib.suppress(AssertionError):
        until(lambda: machine("/opt/tapline/bin/tapline", "health", check=False) == f"{url}/healthz answers")
    journal = machine("journalctl", "--no-pager", "--unit=tapline")
    assert "event=serving" in journal, journal
    assert "cpuinfo" not in journal  # what ONNX Runtime computes with is seen
    main = show(machine, "MainPID")
    assert machine("stat", "--format=%u", f"/proc/{main}") != "0"
    assert "CapEff:\t0000000000000000" in machine("cat", f"/proc/{main}/status")
    assert "Seccomp:\t2" in machine("cat", f"/proc/{main}/status")
    sent = engine.run(engine.inside("curl", "--silent", "--form", f"file=@{CAPTURE}", f"{url}/v1/classify/pcap"))
    assert json.loads(sent.stdout)["summary"]["classified"] == 66
    machine("systemctl", "reload", "tapline")
    assert machine("/opt/tapline/bin/tapline", "health") == f"{url}/healthz answers"
    assert (show(machine, "MainPID"), show(machine, "ActiveState")) == (main, "active")
    machine("systemctl", "stop", "tapline")
    assert (show(machine, "Result"), show(machine, "ExecMainStatus")) == ("success", "0")
    assert machine("ls", "/var/lib/tapline/data").split() == ["history.db", "jobs", "lock"]
