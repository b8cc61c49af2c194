"""Reassembly of fragments that overlap, packets per second of CPU: python benchmarks/fragments.py [--packets N].

The worst case of one datagram: every other eight bytes first, from the end, then fragments that overlap two holes each.
Beside it the same fragments found by looking at every part, as a list of parts without an index does.
"""

from __future__ import annotations

import argparse

from cpu_time import cpu_seconds
from hardware import describe, report

from tapline.service.sources.packets.fragments import Datagram, Fragment

UNITS = 8_190


def fragments(count: int) -> list[Fragment]:
    """`count` fragments, the datagram after the last begun anew by the caller."""
    apart = [place * 8 for place in range(UNITS - 2, 0, -2)]
    across = [place * 8 for place in range(1, UNITS - 4, 2)]
    made = [_fragment(offset, 8) for offset in apart] + [_fragment(offset, 24) for offset in across]
    return [made[number % len(made)] for number in range(count)]


def _fragment(offset: int, size: int) -> Fragment:
    return Fragment((b"", b"", 0, 17), b"", offset, True, bytes(size), 17)


def by_bisection(given: list[Fragment]) -> None:
    """What the reader does."""
    datagram = Datagram(b"", 0, 17)
    for number, fragment in enumerate(given):
        if number % UNITS == 0:
            datagram = Datagram(b"", 0, 17)
        datagram.add(fragment)


def by_scanning(given: list[Fragment]) -> None:
    """The same parts, each fragment beside all of them."""
    parts: list[tuple[int, bytes]] = []
    for number, fragment in enumerate(given):
        if number % UNITS == 0:
            parts = []
        position, upper = fragment.offset, fragment.offset + len(fragment.payload)
        for start, data in list(parts):
            if start + len(data) <= position or start >= upper:
                continue
            if position < start:
                parts.append((position, bytes(start - position)))
            position = start + len(data)
        if position < upper:
            parts.append((position, bytes(upper - position)))
        parts.sort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packets", type=int, default=8_000)
    given = fragments(parser.parse_args().packets)
    print(describe())
    found, scanned = (len(given) / cpu_seconds(lambda way=way: way(given), 3) for way in (by_bisection, by_scanning))
    print(f"by bisection {found:10,.0f} packets per second of CPU\nby scanning  {scanned:10,.0f}")
    print(f"ratio        {found / scanned:10.1f}")
    report(
        f"{len(given)} fragments that overlap", f"{found:,.0f} packets per CPU second: **{found / scanned:.0f} times**"
    )


if __name__ == "__main__":
    main()
