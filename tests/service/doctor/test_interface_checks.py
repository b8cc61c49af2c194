"""Interfaces as taps, with real pairs of virtual Ethernet: down, without a link, small, and with packets joined."""

import array
import fcntl
import os
import shutil
import socket
import struct
import subprocess

import pytest

from tapline.service.doctor import interface_checks
from tapline.service.doctor.interface_checks import (
    InterfaceOffloads,
    InterfaceSize,
    InterfaceUp,
    active_features,
)
from tapline.service.doctor.interface_checks import interface_checks as checks_of

SGRO, STSO, SGSO = 0x2C, 0x1F, 0x24  # ETHTOOL_S..., linux/ethtool.h
ONE, OTHER = f"tdr{os.getpid() % 100_000}a", f"tdr{os.getpid() % 100_000}b"


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode


def switch(interface, command, on):
    """Switch a feature, as `ethtool -K` does."""
    value = array.array("B", struct.pack("II", command, on))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, 0x8946, struct.pack("16sQ16x", interface.encode(), value.buffer_info()[0]))


@pytest.fixture
def pair():
    """A pair of interfaces, both up, as on a tap that joins nothing."""
    if os.geteuid() != 0 or shutil.which("ip") is None or ip("link", "add", ONE, "type", "veth", "peer", "name", OTHER):
        pytest.skip("needs root and `ip`, to make a pair of interfaces")
    try:
        for name in (ONE, OTHER):
            ip("link", "set", name, "up")
            for command in (SGRO, STSO, SGSO):
                switch(name, command, 0)
        yield ONE
    finally:
        ip("link", "del", ONE)


def outcome(check):
    [found] = check.run()
    return found.outcome, found.found, found.advice


def test_a_tap_as_it_should_be(pair):
    assert outcome(InterfaceUp(pair))[0] == "ok"
    assert "packets have arrived" in outcome(InterfaceUp(pair))[1]
    assert outcome(InterfaceSize(pair)) == ("ok", "1500 bytes", "")
    assert [outcome(check)[0] for check in checks_of([f"{pair}=edge"])][:2] == ["ok", "ok"]


def test_an_interface_that_is_down_or_without_a_link(pair):
    ip("link", "set", OTHER, "down")
    assert outcome(InterfaceUp(pair))[1] == "it is up, and there is no link"
    ip("link", "set", pair, "down")
    assert outcome(InterfaceUp(pair)) == ("problem", "it is down", f"ip link set {pair} up")


def test_frames_that_do_not_fit(pair):
    ip("link", "set", pair, "mtu", "1400")
    assert outcome(InterfaceSize(pair))[0] == "warning"
    ip("link", "set", pair, "mtu", "9500")
    found = outcome(InterfaceSize(pair))
    assert (found[0], found[2]) == ("warning", "Where frames are so large: --zeek-option Pcap::snaplen=9564")


def test_packets_that_are_joined(pair):
    rest = [name for name in active_features(pair) if name in interface_checks.JOINS_WHAT_IS_SENT]
    switch(pair, SGRO, 1)
    assert "rx-gro" in active_features(pair)
    state, found, advice = outcome(InterfaceOffloads(pair))
    assert (state, found.startswith("gro: packets are joined")) == ("problem", True)
    assert f"ethtool -K {pair} gro off" in advice
    switch(pair, SGRO, 0)
    switch(pair, STSO, 1)
    state, found, advice = outcome(InterfaceOffloads(pair))
    assert (state, "tso" in found) == ("warning", True)
    switch(pair, STSO, 0)
    assert outcome(InterfaceOffloads(pair))[0] == ("warning" if rest else "ok")


def test_an_interface_that_is_not_there():
    [check] = checks_of(["nothere0=edge"])
    state, found, advice = outcome(check)
    assert (state, found) == ("problem", "there is none of this name")
    assert "lo" in advice


def test_a_driver_that_does_not_tell(monkeypatch):
    def refuse(interface, request):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(interface_checks, "_ethtool", refuse)
    state, found, advice = outcome(InterfaceOffloads("eth0"))
    assert (state, found) == ("warning", "the driver does not tell: operation not supported")
    assert "ethtool -k eth0" in advice


def test_the_loopback_is_no_tap():
    assert outcome(InterfaceOffloads("lo"))[0] == "not applicable"
    assert outcome(InterfaceSize("lo"))[0] == "ok"
