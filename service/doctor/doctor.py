"""All checks of a machine for given settings, one after the other, each with a limit of time."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from tapline.service.doctor.finding import Check, Finding
from tapline.service.doctor.interface_checks import interface_checks
from tapline.service.doctor.machine_checks import Clock, Disk, Port, Python, Resources
from tapline.service.doctor.model_checks import Checkpoints, Gpu, OnnxRuntime
from tapline.service.doctor.output_checks import output_checks
from tapline.service.doctor.zeek_checks import CaptureRights, ZeekPackage, ZeekVersion
from tapline.service.settings import Settings
from tapline.service.sources.bus.transport import shown_url
from tapline.service.sources.zeek_options import zeek_arguments

CHECK_SECONDS = 120
CONNECT_SECONDS = 3


class Sensor:
    """A sensor's bus can be reached."""

    what = "sensor"

    def __init__(self, url: str) -> None:
        self._url = url

    def run(self) -> Iterator[Finding]:
        """Connect to its address and close."""
        what = f"{self.what} {shown_url(self._url)}"
        try:
            parts = urlsplit(self._url)
            socket.create_connection((parts.hostname or "", parts.port or 27759), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            yield Finding(what, "problem", f"no connection: {reason}", "Is Zeek with tapline's package running there?")
            return
        yield Finding(what, "ok", "it takes connections")


def checks(settings: Settings) -> list[Check]:
    """The checks for these settings, in the order in which a person would look."""
    has_interface = bool(settings.interface)
    return [
        Python(),
        OnnxRuntime(settings.engine),
        Gpu(settings.engine),
        Checkpoints(settings),
        ZeekVersion(has_interface),
        ZeekPackage(zeek_arguments(settings.zeek_script, settings.zeek_option), has_interface),
        CaptureRights(has_interface),
        *interface_checks(settings.interface),
        *(Sensor(url) for url in settings.zeek),
        *output_checks(settings.output),
        Port(settings.host, settings.port, tls=settings.tls_cert is not None),
        Disk(settings),
        Resources(settings),
        Clock(),
    ]


def examine(settings: Settings, seconds: float = CHECK_SECONDS) -> Iterator[Finding]:
    """What each check finds, as it finds it; one that takes longer than so many `seconds` is given up."""
    for check in checks(settings):
        yield from bounded(check, seconds)


def bounded(check: Check, seconds: float) -> Iterator[Finding]:
    """What a check finds; that it broke or took too long is a finding as well."""
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            for finding in check.run():
                found.put(finding)
        except Exception as error:
            advice = "This is a fault of tapline: please report it."
            found.put(Finding(check.what, "problem", f"the check broke: {type(error).__name__}: {error}", advice))
        found.put(None)

    threading.Thread(target=look, name=check.what, daemon=True).start()
    while True:
        try:
            finding = found.get(timeout=seconds)
        except queue.Empty:
            yield Finding(
                check.what, "problem", f"no answer within {seconds:g} seconds", "Look at what hangs: top, dmesg."
            )
            return
        if finding is None:
            return
        yield finding
