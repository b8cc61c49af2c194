"""The life of the server: start, serve until asked to stop, drain within a limit, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import structlog
import uvicorn

from service.api.app import create_app
from service.log_lines import configure_logs
from service.runtime import Service
from service.settings import Settings
from service.signals import stop_signals

log = structlog.get_logger()


class ListenError(RuntimeError):
    """The address cannot be listened on; the message says why."""


class GaveUpError(RuntimeError):
    """A part of the service could not be kept alive; the message says which."""


class _Server(uvicorn.Server):
    """uvicorn's server, except that SIGTERM, SIGINT and SIGHUP end it with status 0 once it has drained.

    It also ends where a part of the service cannot be kept alive.
    """

    def __init__(self, config: uvicorn.Config, gave_up: asyncio.Event) -> None:
        super().__init__(config)
        self._gave_up = gave_up

    async def main_loop(self) -> None:
        watching = asyncio.create_task(self._stop_when_given_up(), name="gave up")
        try:
            await super().main_loop()
        finally:
            watching.cancel()

    async def _stop_when_given_up(self) -> None:
        await self._gave_up.wait()
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        asked = stop_signals()
        for number in asked:
            loop.add_signal_handler(number, self._stop, number.name)
        try:
            yield
        finally:
            for number in asked:
                loop.remove_signal_handler(number)

    def _stop(self, name: str) -> None:
        log.info("stopping", signal=name)
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Raises:
        CheckpointError, EngineError, TransportError: nothing can be served.
        ListenError: the address cannot be listened on.
        GaveUpError: a part of the service died again and again.
    """
    configure_logs()
    with _listening(settings) as listener:
        service = Service(settings)
        checkpoint = service.classifier.checkpoint
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("settings", **settings.model_dump(mode="json", exclude_none=True))
        log.info("serving", url=url, model=f"{checkpoint.name} {checkpoint.version}")
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
            h11_max_incomplete_event_size=64 << 10,
        )
        _Server(config, service.supervisor.gave_up).run(sockets=[listener])
    log.info("stopped")
    if service.supervisor.failure:
        raise GaveUpError(service.supervisor.failure)


def _listening(settings: Settings) -> socket.socket:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ListenError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from None
