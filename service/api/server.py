"""The life of the server: start, serve until asked to stop, drain within a limit, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
from fastapi import FastAPI

from tapline.service.access.access import Access
from tapline.service.access.tls import Certificate
from tapline.service.api.app import create_app
from tapline.service.api.http_protocol import DeadlineProtocol, Deadlines
from tapline.service.engines.providers import idle_gpu
from tapline.service.log_lines import configure_logs, log
from tapline.service.process.garbage import spare_what_is_loaded
from tapline.service.process.signals import has_terminal, stop_signals
from tapline.service.runtime import Service
from tapline.service.settings import Settings, is_loopback

_TICKS_PER_SECOND = 10
_CUT_OFF_SECONDS = 5
"""How long requests may take to end when they were cut off."""


PAGE_MESSAGE_BYTES = 1 << 20
"""Largest message of a page of the dashboard: what somebody typed or pressed."""


class ListenError(RuntimeError):
    """The address cannot be listened on; the message says why."""


class GaveUpError(RuntimeError):
    """A part of the service could not be kept alive; the message says which."""


class _Server(uvicorn.Server):
    """uvicorn's server, except that SIGTERM and SIGINT end it with status 0 once it has drained, and so does SIGHUP
    where there is a terminal; where there is none it calls `hang_up`.

    It also ends where a part of the service cannot be kept alive.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        gave_up: asyncio.Event,
        hang_up: Callable[[], None],
        certificate: Certificate | None,
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._hang_up = hang_up
        self._gave_up = gave_up
        self._certificate = certificate
        config.ssl = certificate.context if certificate is not None else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; a client has no minute for its TLS handshake, which uvicorn has no setting for."""
        loop = asyncio.get_running_loop()
        create_server = loop.create_server
        if self.config.ssl is not None:
            seconds = self._settings.client_timeout_seconds
            loop.create_server = partial(create_server, ssl_handshake_timeout=seconds)  # type: ignore
        try:
            await super().startup(sockets)
        finally:
            loop.create_server = create_server  # type: ignore[method-assign]

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
        if signal.SIGHUP in asked and not has_terminal():
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for number in asked:
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish within the limit, then cut their connections off, which ends them in order."""
        timer = asyncio.get_running_loop().call_later(self._settings.shutdown_seconds, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _cut_off(self) -> None:
        log.info(
            "cutting requests off", requests=len(self.server_state.tasks), after_seconds=self._settings.shutdown_seconds
        )
        for connection in list(self.server_state.connections):
            if isinstance(connection, DeadlineProtocol):
                connection.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; once a second connections and the certificate are checked."""
        if counter % _TICKS_PER_SECOND == 0:
            if self._certificate is not None:
                self._certificate.refresh()
            for connection in list(self.server_state.connections):
                if isinstance(connection, DeadlineProtocol):
                    connection.check()
        return await super().on_tick(counter)

    def _stop(self, name: str) -> None:
        log.info("stopping", signal=name)
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP ends it where there is a terminal, else it opens files anew.

    Raises:
        KeysError, TlsError: keys, the audit log or the certificate cannot be used.
        CheckpointError, EngineError, TransportError: nothing can be served.
        JobsInUseError: the directory of jobs cannot be used, or another service has it.
        ListenError: the address cannot be listened on.
        GaveUpError: a part of the service died again and again.
    """
    configure_logs()
    spare_what_is_loaded()
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    access = Access(settings)
    with _listening(settings) as listener:
        service = Service(settings)
        service.jobs.open()
        checkpoint = service.classifier.checkpoint
        host, port = listener.getsockname()[:2]
        scheme = "https" if certificate is not None else "http"
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        log.info("settings", **settings.model_dump(mode="json", exclude_none=True))
        provider = service.batcher.provider
        log.info("serving", url=url, model=f"{checkpoint.name} {checkpoint.version}", provider=provider)
        if settings.devices != "cpu" and (reason := idle_gpu(service.classifier.provider)):
            log.warning("no gpu computes", reason=reason)
        _warn_of_clear_text(settings, access)
        add_pages = _pages(service)
        deadlines = Deadlines(settings.client_timeout_seconds, settings.client_min_bytes_per_second)
        config = uvicorn.Config(
            create_app(service, add_pages, access),
            loop="asyncio",
            http=partial(DeadlineProtocol, deadlines=deadlines),  # type: ignore[arg-type]
            ws="websockets-sansio" if add_pages else "none",
            ws_max_size=PAGE_MESSAGE_BYTES,
            log_level="error",  # what is wrong with a request is answered, not logged
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.forwarded_allow_ips),
            forwarded_allow_ips=settings.forwarded_allow_ips,
            timeout_graceful_shutdown=round(settings.shutdown_seconds) + _CUT_OFF_SECONDS,
            h11_max_incomplete_event_size=64 << 10,
        )
        config.load()
        _Server(config, settings, service.supervisor.gave_up, service.hang_up, certificate).run(sockets=[listener])
    log.info("stopped")
    if service.supervisor.failure:
        raise GaveUpError(service.supervisor.failure)


def _warn_of_clear_text(settings: Settings, access: Access) -> None:
    if (
        access.is_on
        and not is_loopback(settings.host)
        and settings.tls_cert is None
        and not settings.forwarded_allow_ips
    ):
        log.warning("keys come in clear text", hint="give --tls-cert and --tls-key, or put a proxy with TLS before it")


def _pages(service: Service) -> Callable[[FastAPI], None] | None:
    """What adds the dashboard; None where it is not wanted, or not installed."""
    if service.settings.dashboard == "off":
        return None
    try:
        from tapline.service.dashboard.mount import mount_dashboard
    except ModuleNotFoundError as error:
        log.info("no dashboard", reason=f"{error.name} is missing: install tapline-traffic[ui]")
        return None
    return partial(mount_dashboard, service)


def _listening(settings: Settings) -> socket.socket:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ListenError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from None
