"""The life of the server: start, serve until asked to stop, drain within a limit, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

import structlog
import uvicorn

from service.api.app import create_app
from service.runtime import Service
from service.settings import Settings

log = structlog.get_logger()


class _Server(uvicorn.Server):
    """uvicorn's server, except that SIGTERM and SIGINT end it with status 0 once it has drained."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        stop_signals = (signal.SIGTERM, signal.SIGINT)
        for number in stop_signals:
            loop.add_signal_handler(number, self._stop, number.name)
        try:
            yield
        finally:
            for number in stop_signals:
                loop.remove_signal_handler(number)

    def _stop(self, name: str) -> None:
        log.info("stopping", signal=name)
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        CheckpointError, EngineError: nothing can be served.
        SystemExit: the address cannot be listened on.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    service = Service(settings)
    checkpoint = service.classifier.checkpoint
    log.info("settings", **settings.model_dump(mode="json", exclude_none=True))
    log.info("serving", url=f"http://{settings.host}:{settings.port}", model=f"{checkpoint.name} {checkpoint.version}")
    config = uvicorn.Config(
        create_app(service),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        h11_max_incomplete_event_size=64 << 10,
    )
    _Server(config).run()
    log.info("stopped")
