"""One large capture out of many: the packets of the captures in folders, copy after copy, until it has a size.

    python benchmarks/make_capture.py FOLDER... --out big.pcap [--megabytes 320]

Ethernet captures alone (pcap, pcapng, plain or compressed), in order of their path, `GROUP` at a time: within a group
each starts half a second after the one before, and gives its first two minutes. Groups follow each other, and when all
are through, a copy of them with other IPv4 addresses, so that its flows are flows of their own. The same files give the
same bytes; no more than the blocks of one group are in memory. Checksums are left as they were: read the file with
checksums ignored (`zeek -C`).
"""

from __future__ import annotations

import argparse
import heapq
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tapline.service.sources.packets.capture_error import CaptureError
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.formats import open_blocks

GROUP = 32
STAGGER_US = 500_000
MOST_US = 120_000_000
"""So much of each capture is taken."""
PAUSE_US = 10_000_000
"""Between two groups."""
BEGIN_US = 1_700_000_000_000_000
ETHERNET, IPV4 = 1, b"\x08\x00"
SNAP_BYTES = 262_144
GLOBAL_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_BYTES, ETHERNET)
RECORD = struct.Struct("<IIII")
COPIES = 256
"""Copies that there are addresses for."""


@dataclass(frozen=True, order=True)
class Packet:
    """A packet of the new capture; `place` and `number` order what is of the same time. `wire`: its original length."""

    time_us: int
    place: int
    number: int
    wire: int
    data: bytes


def packets_of(path: Path, place: int, begin_us: int) -> Iterator[Packet]:
    """The Ethernet packets of a capture in order of time from `begin_us` on, up to where it is damaged."""
    source = ByteSource(path, None)
    try:
        first = last = None
        number = 0
        for block in open_blocks(source):
            for start, size, wire, when, link in zip(
                *(part.tolist() for part in (block.start, block.captured, block.wire, block.time_us, block.link)),
                strict=True,
            ):
                first = when if first is None else first
                last = max(when - first, last or 0)  # some captures go back in time
                if last > MOST_US:
                    return
                if link == ETHERNET and size <= SNAP_BYTES:
                    yield Packet(begin_us + last, place, number, wire, block.data[start : start + size])
                    number += 1
    except CaptureError:  # some are damaged on purpose: what came before counts
        return
    finally:
        source.close()


def readdressed(data: bytes, copy: int) -> bytes:
    """The packet with the last byte of both IPv4 addresses moved by `copy`."""
    if not copy or len(data) < 34 or data[12:14] != IPV4:
        return data
    changed = bytearray(data)
    for place in (29, 33):
        changed[place] = (changed[place] + copy) % 256
    return bytes(changed)


def merged(paths: list[Path]) -> Iterator[Packet]:
    """Group after group, copy after copy, without end; nothing where no capture holds a packet."""
    now_us = BEGIN_US
    for copy in range(COPIES):
        found = False
        for at in range(0, len(paths), GROUP):
            streams = [
                packets_of(path, place, now_us + place * STAGGER_US)
                for place, path in enumerate(paths[at : at + GROUP])
            ]
            for packet in heapq.merge(*streams):
                found = True
                now_us = max(now_us, packet.time_us)
                yield Packet(packet.time_us, packet.place, packet.number, packet.wire, readdressed(packet.data, copy))
            now_us += PAUSE_US
        if not found:
            return


def write(paths: list[Path], out: Path, size_bytes: int) -> int:
    """Write packets until the file has so many bytes, or there are no more; gives their number."""
    staging = out.with_name(f".{out.name}.partial")
    written = len(GLOBAL_HEADER)
    number = 0
    try:
        with staging.open("wb") as file:
            file.write(GLOBAL_HEADER)
            for packet in merged(paths):
                number += 1
                seconds, microseconds = divmod(packet.time_us, 1_000_000)
                file.write(RECORD.pack(seconds, microseconds, len(packet.data), max(packet.wire, len(packet.data))))
                file.write(packet.data)
                written += RECORD.size + len(packet.data)
                if written >= size_bytes:
                    break
        staging.replace(out)
    finally:
        staging.unlink(missing_ok=True)
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=320)
    options = parser.parse_args()
    paths = sorted(path for folder in options.folders for path in folder.rglob("*") if path.is_file())
    number = write(paths, options.out, round(options.megabytes * 1e6))
    if not number:
        options.out.unlink()
        sys.exit(f"{', '.join(map(str, options.folders))}: no Ethernet capture with a packet in it")
    print(f"{options.out}: {number} packets, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
