"""The traffic of a week at speed: real flows, early and final, each with a name of its own and a time of that week."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field

import msgspec
from websockets.exceptions import ConnectionClosed

from tests.batches import flows_event
from tests.service.sources.bus.sensors import AcknowledgingSensor
from tests.soak.load import real_flows

MONDAY_US = 1_767_571_200_000_000
"""2026-01-05, midnight UTC: when the week begins."""

DAY_US = 86_400_000_000
FLOWS_PER_SECOND = 60
LAST = "last"
"""The uid of the flow that ends the week."""


@dataclass
class Traffic:
    """What one sensor publishes: by uid, when it was (monotonic), or None where nobody was connected to hear it."""

    sensor: AcknowledgingSensor
    random: random.Random
    published: dict[str, float | None] = field(default_factory=dict)
    events: int = 0

    async def day(self, day: int, seconds: float) -> None:
        """Publish a day of flows in so many seconds."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            start_us = MONDAY_US + round((day + passed / seconds) * DAY_US)
            await self._publish(f"d{day}n{len(self.published)}", start_us)
            due = began + (passed + 1 / FLOWS_PER_SECOND)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def last(self) -> None:
        """Publish one more flow, by whose number those before it that were lost are known."""
        await self.sensor.wait_for_client()
        await self._publish(LAST, MONDAY_US + 7 * DAY_US)

    async def _publish(self, uid: str, start_us: int) -> None:
        flow = msgspec.structs.replace(self.random.choice(real_flows()), start_us=start_us)
        heard = bool(self.sensor.connections)
        forms = [
            msgspec.structs.replace(flow, uid=uid, complete=complete)
            for complete in ((False, True) if self.random.random() < 0.5 else (True,))
        ]
        with contextlib.suppress(ConnectionClosed):
            await self.sensor.publish(flows_event(forms, self.events + 1))
        self.events += len(forms)
        self.published[uid] = time.monotonic() if heard and self.sensor.connections else None
