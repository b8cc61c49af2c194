"""One capture on three routes: live Zeek on an interface, `zeek -r`, and the built-in reader. Same flows, same tokens?

    sudo python benchmarks/routes.py CAPTURE...

tcpreplay sends each capture, in its own time, over a veth pair to Zeek with the package; flows come over the bus.
Needs root, iproute2, tcpreplay and `zeek` on PATH. Flows are matched by endpoints and compared by MM4flow's tokens;
every difference is listed with its cause. Zeek's time-out for silent TCP connections is one minute here, not five, on
the live route, so that the last flows end before one's patience does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from hardware import describe
from namespaces import SENSOR, SENSOR_DEVICE, namespaces, replay_command

from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.service.metrics import Metrics
from tapline.service.sources.bus.source import BusSource, make_transport
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.service.sources.zeek_reader import ZeekReader

ROOT = Path(__file__).resolve().parent.parent

SETTLE_SECONDS = 70
TIMEOUTS = "redef tcp_inactivity_timeout=60sec;"

Tokens = Counter[str]


def tokens(flows: Iterable[Flow]) -> Tokens:
    """The flows with payload, as endpoints and tokens, countable."""
    kept = [flow for flow in flows if flow.payload_lengths]
    batch = encode(kept)
    found: Tokens = Counter()
    for index, flow in enumerate(kept):
        ps, content = (slice(*offsets[index : index + 2]) for offsets in (batch.ps_offsets, batch.bytes_offsets))
        ends = [flow.proto, flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p]
        found[json.dumps([ends, batch.ps_tokens[ps].tolist(), batch.bytes_tokens[content].tolist()])] += 1
    return found


async def live(capture: Path) -> Tokens:
    """In the sensor's namespace: Zeek on the interface, its flows from the bus."""
    last: dict[str, Flow] = {}
    source = BusSource(
        make_transport("ws://127.0.0.1:27759", TlsFiles()),
        Metrics(),
        take_flow=lambda flow: last.__setitem__(flow.uid, flow),
    )
    with tempfile.TemporaryDirectory() as folder:
        zeek = await asyncio.create_subprocess_exec(
            "zeek", "-C", "-i", SENSOR_DEVICE, str(ROOT / "zeek/scripts"), "-e", TIMEOUTS,
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        task = asyncio.create_task(source.run())
        try:
            while not source.state.connected:
                await asyncio.sleep(0.1)
            command = replay_command(str(capture), "--multiplier=1")
            sender = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            await sender.wait()
            await asyncio.sleep(SETTLE_SECONDS)
        finally:
            task.cancel()
            zeek.kill()
            await asyncio.gather(task, zeek.wait(), return_exceptions=True)
    return tokens(last.values())


def cause(entry: str, others: Iterable[str]) -> str:
    """Why a flow of one route is not on the other, by rule."""
    ends, ps, _ = json.loads(entry)
    same_ends = [json.loads(other) for other in others]
    same_ends = [other for other in same_ends if other[0] == ends]
    if not same_ends:
        return "no flow between these endpoints"
    if any(other[1][: len(ps) - 1] == ps[:-1] or ps[: len(other[1]) - 1] == other[1][:-1] for other in same_ends):
        return "the other one has more or fewer packets: cut elsewhere in time"
    return "other packet lengths"


def compare(name: str, reference: Tokens, other: Tokens) -> None:
    """One line, and the causes."""
    same = sum((reference & other).values())
    print(f"  {name:<28} {sum(other.values()):>5} flows, {same:>5} the same")
    for title, missing, present in (("missing", reference - other, other), ("extra", other - reference, reference)):
        for entry in missing.elements():
            proto, orig_h, orig_p, resp_h, resp_p = json.loads(entry)[0]
            print(f"      {title}: {proto} {orig_h} {orig_p} > {resp_h} {resp_p}: {cause(entry, present)}")


def main() -> None:
    """Compare each capture; runs itself again inside the namespace for the live route."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path)
    options = parser.parse_args()
    if os.environ.get("ROUTES_INSIDE"):
        json.dump(asyncio.run(live(options.captures[0])), sys.stdout)
        return
    print(f"machine {describe()}")
    for capture in options.captures:
        reference = tokens(ZeekReader(capture, ReadOptions(heads="none")))
        print(f"{capture.name}: zeek -r has {sum(reference.values())} flows with payload")
        compare("built-in reader", reference, tokens(CaptureReader(capture, ReadOptions(heads="none"))))
        with namespaces():
            command = ["ip", "netns", "exec", SENSOR, sys.executable, __file__, str(capture.resolve())]
            environment = {**os.environ, "ROUTES_INSIDE": "1"}
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, timeout=600)
        compare("live, over veth and the bus", reference, Counter(json.loads(answer.stdout.splitlines()[-1])))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
