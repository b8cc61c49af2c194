"""A wire between two virtual interfaces, and captures sent down it."""

import contextlib
import socket
import subprocess
import time

import dpkt
import pytest

SENDING, TAPPED = "tapline-tx", "tapline-rx"


@contextlib.contextmanager
def wire():
    """Two ends of a wire that carries what is sent on it and nothing else; a test that can't have one is skipped."""
    subprocess.run(["ip", "link", "del", SENDING], capture_output=True, check=False)
    made = subprocess.run(
        ["ip", "link", "add", SENDING, "type", "veth", "peer", "name", TAPPED], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no virtual interfaces can be made here")
    try:
        for device in (SENDING, TAPPED):
            quiet = f"net.ipv6.conf.{device}.disable_ipv6=1"  # nothing of the kernel's own on it
            subprocess.run(["sysctl", "-qw", quiet], capture_output=True, check=False)
            subprocess.run(["ip", "link", "set", device, "mtu", "9000", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "del", SENDING], check=True)


def send_capture(path):
    """Send the frames of a capture down the wire, as fast as a tap of an office sees them."""
    with path.open("rb") as file, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((SENDING, 0))
        for number, (_, frame) in enumerate(dpkt.pcap.Reader(file)):
            sender.send(frame)
            if number % 20 == 0:
                time.sleep(0.002)
