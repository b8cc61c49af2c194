"""Two network namespaces joined by a wire, for measurements with a real Zeek on a real interface. Needs root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

SENDER, SENSOR = "tapline-send", "tapline-tap"
SENDER_DEVICE, SENSOR_DEVICE = "tx0", "tap0"


def run(*command: str) -> None:
    """Run a set-up command."""
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """Make them, silent but for what is replayed; take them away at the end."""
    _remove()
    for name in (SENDER, SENSOR):
        run("ip", "netns", "add", name)
        run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    run(
        "ip", "link", "add", SENDER_DEVICE, "netns", SENDER, "type", "veth",
        "peer", "name", SENSOR_DEVICE, "netns", SENSOR,
    )  # fmt: skip
    for name, device in ((SENDER, SENDER_DEVICE), (SENSOR, SENSOR_DEVICE)):
        run("ip", "-n", name, "link", "set", device, "mtu", "65535", "up")
    run("ip", "-n", SENSOR, "link", "set", "lo", "up")
    try:
        yield
    finally:
        _remove()


def replay_command(capture: str, pace: str) -> list[str]:
    """The command that sends a capture down the wire; `pace` is tcpreplay's option for it."""
    return ["ip", "netns", "exec", SENDER, "tcpreplay", "-q", "-i", SENDER_DEVICE, pace, capture]


def _remove() -> None:
    for name in (SENDER, SENSOR):
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
