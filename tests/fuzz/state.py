"""The files of a state directory, spoiled: what is whole is used, and the service starts and goes on in any case."""

from __future__ import annotations

import asyncio
import functools
import random
import tempfile
from pathlib import Path

import numpy as np

from tapline.models.trace import TraceSettings
from tapline.service.traces.trace_verdict import WindowKey
from tapline.service.traces.trace_verdict import trace_flow as kept_flow
from tapline.service.traces.window_state import JOURNAL, SNAPSHOT, TraceState
from tapline.service.traces.windows import TraceWindows, WindowBounds
from tests.fuzz.mutation import spoil
from tests.logged import capture_logs
from tests.service.traces.fakes import WIDTH, trace_checkpoint, trace_flow

BUS = "ws://sensor:27759"
NOW = 1_000_000
CHECKPOINT = trace_checkpoint()


def new_windows() -> TraceWindows:
    """Windows with nothing in them."""
    return TraceWindows(TraceSettings(), WindowBounds(max_open_flows=500))


@functools.cache
def files() -> dict[str, bytes]:
    """What a service leaves in its directory that was killed after it had given a verdict."""
    with tempfile.TemporaryDirectory() as name:
        state = TraceState(Path(name), CHECKPOINT)
        windows = new_windows()
        generator = np.random.default_rng(1)
        for number in range(40):
            embedding = generator.normal(size=WIDTH).astype(np.float32)
            flow = trace_flow(number, NOW + number, f"10.0.0.{number % 9}", complete=number % 3 != 0)
            windows.add(BUS, flow, kept_flow(flow, None, embedding.tobytes()), NOW)
        asyncio.run(state.save(windows))
        for number in range(3):
            state.closed(WindowKey(BUS, f"10.0.0.{number}", NOW * 1_000_000))
        state.close()
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def case(random: random.Random) -> None:
    """Start with one spoiled directory, take a flow, close what is over, and save."""
    with tempfile.TemporaryDirectory() as name, capture_logs():
        directory = Path(name)
        for file, data in files().items():
            (directory / file).write_bytes(data)
        for file in random.sample((SNAPSHOT, JOURNAL, f"{JOURNAL}.old"), random.randint(1, 2)):
            (directory / file).write_bytes(spoil(files().get(file, files()[JOURNAL]), random))
        state = TraceState(directory, CHECKPOINT)
        try:
            windows = new_windows()
            state.load(windows)
            assert windows.open_flows <= 40
            flow = trace_flow(99, NOW + 50)
            windows.add(BUS, flow, kept_flow(flow, None, bytes(4 * WIDTH)), NOW + 60)
            windows.close_due(NOW + 5000)
            for job in windows.take_jobs(100):
                state.closed(job.key)
            asyncio.run(state.save(windows))
        finally:
            state.close()
        again = TraceState(directory, CHECKPOINT)
        try:
            again.load(restarted := new_windows())
        finally:
            again.close()
        assert restarted.open_flows == windows.open_flows
