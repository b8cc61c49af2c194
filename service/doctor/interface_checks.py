"""A network interface as a tap: it is up, frames arrive whole, and nothing joins packets before they are captured."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from tapline.service.doctor.finding import Finding

_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCETHTOOL = 0x8913, 0x8921, 0x8946  # linux/sockios.h
_UP = 0x1  # linux/if.h
_GSTRINGS, _GSSET_INFO, _GFEATURES, _FEATURES = 0x1B, 0x37, 0x3A, 4  # linux/ethtool.h
_NAME_BYTES = 32

ZEEK_SNAPLEN_BYTES = 9216
"""What Zeek keeps of a frame unless told otherwise (`Pcap::snaplen`)."""

JOINS_WHAT_ARRIVES = {
    "rx-gro": "gro", "rx-lro": "lro", "rx-gro-hw": "rx-gro-hw", "rx-gro-list": "rx-gro-list",
    "rx-udp-gro-forwarding": "rx-udp-gro-forwarding",
}  # fmt: skip
"""Features that join packets of one flow before they are captured, and what `ethtool -K` calls them."""

JOINS_WHAT_IS_SENT = {
    "tx-tcp-segmentation": "tso", "tx-tcp6-segmentation": "tso", "tx-generic-segmentation": "gso",
    "tx-udp-segmentation": "tx-udp-segmentation",
}  # fmt: skip
"""Features by which this host's own packets are captured before they are cut to size."""


class InterfaceUp:
    """The interface is there and up, and something is at the other end."""

    what = "interface"

    def __init__(self, interface: str) -> None:
        self._interface = interface

    def run(self) -> Iterator[Finding]:
        """Ask the kernel for its flags."""
        what = f"{self.what} {self._interface}"
        names = [name for _, name in socket.if_nameindex()]
        if self._interface not in names:
            yield Finding(what, "problem", "there is none of this name", f"Name one of: {', '.join(names)}.")
            return
        if not _number(self._interface, _SIOCGIFFLAGS, "H") & _UP:
            yield Finding(what, "problem", "it is down", f"ip link set {self._interface} up")
        elif _kernel_file(self._interface, "carrier") == 0:
            yield Finding(
                what, "problem", "it is up, and there is no link", "Look at the cable, and at the mirror port."
            )
        else:
            packets = _kernel_file(self._interface, "statistics/rx_packets")
            arrived = "" if packets is None else f", {packets:,} packets have arrived"
            yield Finding(what, "ok", f"it is up{arrived}")


class InterfaceSize:
    """Frames of the size that may come are received, and kept whole."""

    what = "MTU"

    def __init__(self, interface: str) -> None:
        self._interface = interface

    def run(self) -> Iterator[Finding]:
        """Ask the kernel for the largest frame."""
        what = f"{self.what} of {self._interface}"
        mtu = _number(self._interface, _SIOCGIFMTU, "I")
        if mtu > ZEEK_SNAPLEN_BYTES and self._interface != "lo":
            yield Finding(
                what, "warning", f"{mtu} bytes, of which Zeek keeps {ZEEK_SNAPLEN_BYTES}",
                f"Where frames are so large: --zeek-option Pcap::snaplen={mtu + 64}",
            )  # fmt: skip
        elif mtu < 1500:
            yield Finding(
                what, "warning", f"{mtu} bytes: cards drop frames that are larger",
                f"ip link set {self._interface} mtu 1500, or what the mirrored network has.",
            )  # fmt: skip
        else:
            yield Finding(what, "ok", f"{mtu} bytes")


class InterfaceOffloads:
    """No packets are joined before they are captured: models read the lengths that packets had on the wire."""

    what = "offloads"

    def __init__(self, interface: str) -> None:
        self._interface = interface

    def run(self) -> Iterator[Finding]:
        """Ask the driver for the features that are active."""
        what = f"{self.what} of {self._interface}"
        if self._interface == "lo":
            yield Finding(what, "not applicable", "packets of the loopback are never cut to size")
            return
        try:
            active = active_features(self._interface)
        except OSError as error:
            yield Finding(
                what, "warning", f"the driver does not tell: {(error.strerror or '').lower()}",
                f"Look at ethtool -k {self._interface}: gro, lro, tso and gso are to be off.",
            )  # fmt: skip
            return
        arriving = _named(active, JOINS_WHAT_ARRIVES)
        sent = _named(active, JOINS_WHAT_IS_SENT)
        command, for_sent = (
            f"ethtool -K {self._interface} {' '.join(f'{name} off' for name in names)}" for names in (arriving, sent)
        )
        own = f"; where this host's own packets are watched, too: {for_sent}" if sent else ""
        if arriving:
            yield Finding(
                what, "problem", f"{', '.join(arriving)}: packets are joined, so that their lengths are not those sent",
                f"Also at the next start of the machine: {command}{own}",
            )  # fmt: skip
        elif sent:
            yield Finding(
                what, "warning", f"{', '.join(sent)}: this host's own packets are seen before they are cut to size",
                f"On a tap that only receives it is nothing; else: {for_sent}",
            )  # fmt: skip
        else:
            yield Finding(what, "ok", "none joins packets")


def active_features(interface: str) -> set[str]:
    """The features of an interface that are active now, by the kernel's names, as `ethtool -k` asks for them.

    Raises:
        OSError: the interface or the kernel does not tell.
    """
    answer = _ethtool(interface, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _FEATURES, 0))
    count = struct.unpack_from("=IIQI", answer)[3]
    strings = _ethtool(interface, struct.pack("=III", _GSTRINGS, _FEATURES, count) + bytes(count * _NAME_BYTES))[12:]
    names = [strings[at : at + _NAME_BYTES].split(b"\0")[0].decode() for at in range(0, len(strings), _NAME_BYTES)]
    blocks = (count + 31) // 32
    words = _ethtool(interface, struct.pack("=II", _GFEATURES, blocks) + bytes(16 * blocks))[8:]
    active = [block[2] for block in struct.iter_unpack("=IIII", words)]  # available, requested, active, never changed
    return {name for bit, name in enumerate(names) if active[bit // 32] >> bit % 32 & 1}


def _named(active: set[str], names: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(short for name, short in names.items() if name in active))


def _ethtool(interface: str, request: bytes) -> bytes:
    buffer = array.array("B", request)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, _SIOCETHTOOL, struct.pack("=16sQ16x", interface.encode(), buffer.buffer_info()[0]))
    return buffer.tobytes()


def _number(interface: str, request: int, form: str) -> int:
    """A number that the kernel keeps of an interface; 0 where it vanished."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            answer = fcntl.ioctl(asked, request, struct.pack("=16s24x", interface.encode()))
        except OSError:
            return 0
    number: int = struct.unpack_from(f"=16x{form}", answer)[0]
    return number


def _kernel_file(interface: str, name: str) -> int | None:
    """What the kernel says in a file of the interface, None where it says nothing."""
    try:
        return int((Path("/sys/class/net") / interface / name).read_text())
    except (OSError, ValueError):
        return None


def interface_checks(interfaces: Sequence[str]) -> Iterator[InterfaceUp | InterfaceSize | InterfaceOffloads]:
    """The checks of each interface, of those that are not there the first alone."""
    names = {name for _, name in socket.if_nameindex()}
    for entry in interfaces:
        interface = entry.partition("=")[0]
        yield InterfaceUp(interface)
        if interface in names:
            yield InterfaceSize(interface)
            yield InterfaceOffloads(interface)
