"""Histories that run, and flows and traces to keep."""

import asyncio
import contextlib
from pathlib import Path

from tapline.models.flow import Flow
from tapline.models.verdict import Alternative, Verdict
from tapline.service.history.history import History
from tapline.service.metrics import Metrics
from tapline.service.traces.trace_verdict import TopFlow, TraceVerdict

BUS = "ws://127.0.0.1:9997"
WAIT_SECONDS = 60


def flow(uid="C1", **fields):
    """A flow of two packets."""
    return Flow(
        **{
            "uid": uid, "start_us": 1_700_000_000_000_000, "duration_us": 1500, "orig_h": "10.0.0.5", "orig_p": 40_000,
            "resp_h": "192.0.2.1", "resp_p": 443, "proto": "tcp", "up": 1, "down": 1, "payload_lengths": [300, -1400],
            "orig_pkts": 4, "resp_pkts": 5, "orig_ip_bytes": 500, "resp_ip_bytes": 1700, "sensor": "gate",
            **fields,
        }
    )  # fmt: skip


def verdict(nearest="tls", confidence=0.9, unknown=False, model="random", **fields):
    label = "unknown" if unknown else nearest
    return Verdict(label, nearest, confidence, unknown, [Alternative("http", 0.0625)], model, "1", **fields)


def trace(nearest="camera", subject="00:17:88:01:02:03", **fields):
    fields = {"final": True, "unknown": False, "model": "devices", "start_us": 1_700_000_000_000_000, **fields}
    unknown = fields.pop("unknown")
    label = "unknown" if unknown else nearest
    said = Verdict(label, nearest, 0.9, unknown, [], fields.pop("model"), "2", fields.pop("final"))
    top = [TopFlow("C1", "1:x", 5, 7, "udp", "10.0.0.5", 1, "10.0.0.9", 2, 100, "DNS", 0.75, "cam.example")]
    start_us = fields.pop("start_us")
    return TraceVerdict(
        fields.pop("source", BUS), "mac", subject, start_us, start_us + 600_000_000, fields.pop("flows", 3), 1, said,
        top, **fields,
    )  # fmt: skip


def history(place, **options):
    return History(place, Path("/nonexistent"), Metrics(), **{"days": 30, "size_mb": 1000, **options})


@contextlib.asynccontextmanager
async def running(place, **options):
    """A history whose writer runs."""
    found = history(place, **options)
    task = asyncio.create_task(found.run())
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await found.stop(WAIT_SECONDS)


async def settled(history):
    """Until nothing waits to be written."""
    await until(lambda: not history.counts.pending)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)
