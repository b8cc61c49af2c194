"""Many captures through REST: foreign ones, and mutants of them. Does the service stay whole, and its memory flat?

    python benchmarks/captures_rest.py FOLDER... [--captures 1000] [--seed 1] [--checkpoint DIR]

Every second capture is sent as it is, every other one with bytes changed, cut out, doubled or cut off. A service of its
own on a loopback port reads them, one after the other. Printed, a tenth of the way each: memory, descriptors and
threads of the service, and in the end what was answered. Status 1 where an answer was none that the API describes,
or something was left behind.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hardware import describe, report
from healthz import Served, serving

MAX_CAPTURE_BYTES = 4 << 20
STEPS = 10
EXPECTED = {"200", "422"}
SUFFIXES = (".pcap", ".pcapng", ".cap", ".trace", ".gz", ".zst")


def captures(folders: list[Path], count: int, generator: random.Random) -> Iterator[bytes]:
    """So many captures of the folders, every second one mutated."""
    paths = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name.endswith(SUFFIXES) and 0 < path.stat().st_size <= MAX_CAPTURE_BYTES
    )
    if not paths:
        raise SystemExit("no captures there")
    generator.shuffle(paths)
    for number in range(count):
        data = paths[number // 2 % len(paths)].read_bytes()
        yield mutated(data, generator) if number % 2 else data


def mutated(data: bytes, generator: random.Random) -> bytes:
    """The capture with one to ten changes."""
    spoiled = bytearray(data)
    for _ in range(generator.randint(1, 10)):
        at = generator.randrange(len(spoiled) + 1)
        size = generator.choice([1, 2, 4, 16, 300])
        change = generator.randrange(5)
        if change == 0:
            spoiled[at : at + size] = generator.randbytes(size)
        elif change == 1:
            del spoiled[at : at + size]
        elif change == 2:
            spoiled[at:at] = spoiled[at : at + size]
        elif change == 3:
            spoiled[at : at + 4] = generator.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\1\0"])
        elif generator.random() < 0.2:
            del spoiled[at:]
    return bytes(spoiled) or b"\0"


def ask(served: Served, capture: bytes) -> tuple[str, int]:
    """The status of an answer, and how many flows it has."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=600)
    try:
        connection.request("POST", "/v1/classify/pcap", capture)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        return str(answer.status), body["summary"]["flows"] if answer.status == 200 else 0
    except (OSError, http.client.HTTPException, ValueError) as error:
        return type(error).__name__, 0
    finally:
        connection.close()


def left(served: Served) -> tuple[float, int, int]:
    """Memory in MiB, descriptors and threads of the service."""
    folder = Path(f"/proc/{served.process.pid}")
    return served.status_mb("VmRSS"), len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


def main() -> None:
    """Send all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--captures", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    options = ["--checkpoint", str(given.checkpoint)] if given.checkpoint else []
    told: Counter[str] = Counter()
    flows, started = 0, time.perf_counter()
    print(f"machine {describe()}")
    print("captures   flows   MiB  descriptors  threads")
    marks = []
    with serving(None, options) as served:
        for number, capture in enumerate(captures(given.folders, given.captures, random.Random(given.seed)), start=1):
            status, found = ask(served, capture)
            told[status] += 1
            flows += found
            if number % max(1, given.captures // STEPS) == 0:
                marks.append(left(served))
                print(f"{number:8} {flows:7} {marks[-1][0]:5.0f} {marks[-1][1]:12} {marks[-1][2]:8}", flush=True)
        peak_mb = served.status_mb("VmHWM")
    print(f"{dict(told)} in {time.perf_counter() - started:.0f} s, memory at most {peak_mb:.0f} MiB")
    report(
        f"{given.captures} captures through REST, every other one mutated",
        f"{marks[0][0]:.0f} MiB after the first tenth, {marks[-1][0]:.0f} in the end; descriptors {marks[0][1]}, "
        f"{marks[-1][1]}",
    )
    if not set(told) <= EXPECTED or marks[-1][1] > marks[0][1]:
        sys.exit(1)


if __name__ == "__main__":
    main()
