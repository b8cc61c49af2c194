"""One running service: its checkpoint, batcher and metrics, and what feeds them; command line and API run it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from models.flow import Flow
from service.batcher import Batcher
from service.classifier import Classifier, newest_version, shipped_checkpoint
from service.engines.base import load_engine
from service.live import LivePipeline
from service.metrics import Metrics
from service.replay import Replay
from service.sensors import Sensors, Watcher
from service.settings import Settings
from service.sources.bus.transport import TlsFiles

READY_QUEUE_SHARE = 0.9
"""The service says *not ready* while its queue is fuller than this."""

_WARM_UP = Flow("warm-up", 0, 0, "192.0.2.1", 1, "192.0.2.2", 2, "udp", 1, 0, [64], bytes(64))


class BusyError(RuntimeError):
    """As many captures as are allowed are being worked on."""


class Service:
    """One checkpoint behind one batcher, and what feeds it: requests, sensors, a replay.

    `watcher` is told of every live verdict.
    """

    def __init__(self, settings: Settings, watcher: Watcher = lambda flow, verdict: None) -> None:
        directory = newest_version(settings.checkpoint) if settings.checkpoint else shipped_checkpoint()
        self.settings = settings
        self.metrics = Metrics()
        self.classifier = Classifier(load_engine(settings.engine, directory, settings.threads))
        self.batcher = Batcher(
            self.classifier,
            self.metrics,
            max_batch_size=settings.max_batch_size,
            max_queue_delay_ms=settings.max_queue_delay_ms,
            max_queue_size=settings.max_queue_size,
        )
        self.pipeline = LivePipeline(self.batcher, self.metrics, queue_flows=settings.live_queue_flows)
        self.sensors = Sensors(
            settings.zeek,
            self.pipeline,
            self.metrics,
            tls=TlsFiles(settings.zeek_ca, settings.zeek_cert, settings.zeek_key),
            shards=settings.shards,
            spool_verdicts=settings.spool_verdicts,
            watcher=watcher,
        )
        self.replay = Replay(settings.replay, settings.speed, self.pipeline, watcher) if settings.replay else None
        self._uploads = 0
        checkpoint = self.classifier.checkpoint
        self.metrics.model.info({"name": checkpoint.name, "version": checkpoint.version, "engine": settings.engine})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warm up, serve, then drain within the limit."""
        await asyncio.to_thread(self.classifier.classify, [_WARM_UP])
        self.batcher.start()
        try:
            async with self.sensors.running(self.settings.shutdown_seconds):
                replay = asyncio.create_task(self.replay.run()) if self.replay else None
                try:
                    yield
                finally:
                    if replay:
                        replay.cancel()
                        await asyncio.gather(replay, return_exceptions=True)
        finally:
            await self.batcher.stop(self.settings.shutdown_seconds)

    def not_ready(self) -> str | None:
        """Why no work should be sent here now, or None."""
        waiting = self.batcher.waiting_flows
        if waiting > READY_QUEUE_SHARE * self.batcher.max_queue_size:
            return f"{waiting} flows are waiting"
        if self.pipeline.queue_share > READY_QUEUE_SHARE:
            return "the queue of live flows is full"
        if self._uploads >= self.settings.max_uploads:
            return f"{self._uploads} captures are being worked on"
        return None

    @contextlib.contextmanager
    def upload_slot(self) -> Iterator[None]:
        """Hold one of the places for captures.

        Raises:
            BusyError: all are taken.
        """
        if self._uploads >= self.settings.max_uploads:
            self.metrics.failures.labels("REJECTED").inc()
            raise BusyError(f"{self._uploads} captures are being worked on: come again")
        self._uploads += 1
        self.metrics.uploads_active.set(self._uploads)
        try:
            yield
        finally:
            self._uploads -= 1
            self.metrics.uploads_active.set(self._uploads)
