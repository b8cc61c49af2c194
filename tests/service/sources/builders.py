"""Literal captures for the tests: packets, files and shorthands to read them. Checksums are left 0."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import msgspec

from tapline.models.flow import Flow
from tapline.service.sources.capture import CaptureReader, ReadOptions

CLIENT, SERVER = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
CLIENT6, SERVER6 = bytes.fromhex("20010db8000000000000000000000001"), bytes.fromhex("20010db8000000000000000000000002")
MACS = bytes(range(1, 13))
START_S = 1_700_000_000
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def ipv4(protocol, body, source=CLIENT, target=SERVER, fragment=0, identifier=7, total=None, options=b""):
    header = 20 + len(options)
    total = header + len(body) if total is None else total
    first = 0x40 | header // 4
    return (
        struct.pack(">BBHHHBBH", first, 0, total, identifier, fragment, 64, protocol, 0)
        + source
        + target
        + options
        + body
    )


def ipv6(protocol, body, source=CLIENT6, target=SERVER6, length=None):
    return struct.pack(">IHBB", 6 << 28, len(body) if length is None else length, protocol, 64) + source + target + body


def udp(source_port, target_port, payload):
    return struct.pack(">HHHH", source_port, target_port, 8 + len(payload), 0) + payload


def tcp(source_port, target_port, flags, seq=0, ack=0, payload=b"", options=b""):
    size = (20 + len(options)) // 4 << 4
    return struct.pack(">HHIIBBHHH", source_port, target_port, seq, ack, size, flags, 1000, 0, 0) + options + payload


def icmp(kind, code=0, payload=b""):
    return struct.pack(">BBHI", kind, code, 0, 0) + payload


def ethernet(body, ethertype=None):
    if ethertype is None:
        ethertype = 0x86DD if body[0] >> 4 == 6 else 0x0800
    return MACS + struct.pack(">H", ethertype) + body


@dataclass
class Packet:
    """A packet at `at` seconds after `START_S`; `wire` is its original length if that is not all there is."""

    at: float
    data: bytes
    wire: int | None = None

    @property
    def time_us(self):
        return START_S * 1_000_000 + round(self.at * 1_000_000)


def pcap(packets, link=1, order="<", nanoseconds=False, snap_length=262_144):
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snap_length, link)]
    for packet in packets:
        seconds, fraction = divmod(packet.time_us, 1_000_000)
        fraction = fraction * 1000 + 999 if nanoseconds else fraction
        wire = len(packet.data) if packet.wire is None else packet.wire
        parts += [struct.pack(order + "IIII", seconds, fraction, len(packet.data), wire), packet.data]
    return b"".join(parts)


def block(kind, body, order="<"):
    body += bytes(-len(body) % 4)
    length = 12 + len(body)
    return struct.pack(order + "II", kind, length) + body + struct.pack(order + "I", length)


def section(order="<"):
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link=1, order="<", snap_length=0, options=b""):
    return block(1, struct.pack(order + "HHI", link, 0, snap_length) + options, order)


def option(code, value, order="<"):
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(packet, which=0, order="<", units_per_second=1_000_000, offset_s=0):
    units = (packet.time_us - offset_s * 1_000_000) * units_per_second // 1_000_000
    wire = len(packet.data) if packet.wire is None else packet.wire
    head = struct.pack(order + "5I", which, units >> 32, units & 0xFFFFFFFF, len(packet.data), wire)
    return block(6, head + packet.data, order)


def pcapng(packets, link=1, order="<"):
    return section(order) + interface(link, order) + b"".join(enhanced(packet, 0, order) for packet in packets)


def read(capture, heads="none", **options):
    return list(CaptureReader(io.BytesIO(capture), ReadOptions(heads=heads, **options)))


def flows_of(frames, link=1, heads="none"):
    """The flows of frames one second apart, in the order of their starts."""
    packets = [Packet(at, frame) for at, frame in enumerate(frames)]
    return by_start(read(pcap(packets, link), heads))


def by_start(flows):
    return sorted(flows, key=lambda flow: (flow.start_us, flow.orig_h, flow.orig_p))


def ends(flow: Flow):
    return flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p, flow.proto


class Talk:
    """A TCP conversation between `CLIENT` port 4000 and `SERVER` port 8999, packet by packet."""

    def __init__(self, client_port=4000, server_port=8999):
        self.packets = []
        self.ports = client_port, server_port
        self.at = 0.0

    def wait(self, seconds):
        self.at += seconds
        return self

    def up(self, flags, seq=0, ack=0, payload=b"", captured=None):
        return self._add(tcp(*self.ports, flags, seq, ack, payload), CLIENT, SERVER, captured)

    def down(self, flags, seq=0, ack=0, payload=b"", captured=None):
        return self._add(tcp(*reversed(self.ports), flags, seq, ack, payload), SERVER, CLIENT, captured)

    def _add(self, segment, source, target, captured):
        frame = ethernet(ipv4(6, segment, source, target))
        self.packets.append(Packet(self.at, frame[:captured], len(frame)))
        self.at += 0.001
        return self

    def opened(self, client=1000, server=5000):
        """The handshake; the first data bytes are `client + 1` and `server + 1`."""
        return self.up(SYN, client).down(SYN | ACK, server, client + 1).up(ACK, client + 1, server + 1)

    def flows(self, heads="none"):
        return by_start(read(pcap(self.packets), heads))


def json_of(line):
    """A line of `tapline features`."""
    return msgspec.json.encode(line)
