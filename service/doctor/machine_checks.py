"""The machine itself: room on disk, the port, the clock, memory and cores, and what Python runs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import socket
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tapline.installation import DISTRIBUTION, version
from tapline.service.doctor.finding import Finding
from tapline.service.settings import Settings
from tapline.service.sinks.output_url import EveOutput, parse_outputs

ANSWER_SECONDS = 3
LEAST_FREE_MB = 1024
LEAST_MEMORY_MB = 1024
TIME_ERROR, STA_UNSYNC = 5, 0x40  # sys/timex.h


@dataclass(frozen=True)
class _Place:
    """A directory that is written, and how large what stands there may get, in MiB; None for no bound."""

    name: str
    path: Path
    may_grow_mb: int | None


class Disk:
    """There is room for all that may be written, and it may be written there."""

    what = "disk"

    def __init__(self, settings: Settings) -> None:
        self._places = _places(settings)

    def run(self) -> Iterator[Finding]:
        """Ask each file system for its free room, and add up what may grow on it."""
        together: defaultdict[int, list[_Place]] = defaultdict(list)
        closed: defaultdict[Path, list[_Place]] = defaultdict(list)
        for place in self._places:
            there = _existing(place.path)
            if os.access(there, os.W_OK | os.X_OK):
                together[there.stat().st_dev].append(place)
            else:
                closed[there].append(place)
        for there, places in closed.items():
            yield Finding(
                f"{self.what} {_paths(places)}", "problem", f"this user may not write {there}",
                f"Give it to the user of the service, or name another place for {_names(places)}.",
            )  # fmt: skip
        for places in together.values():
            yield self._room(places)

    def _room(self, places: list[_Place]) -> Finding:
        what = f"{self.what} {_paths(places)}"
        free_mb = shutil.disk_usage(_existing(places[0].path)).free >> 20
        used_mb = sum(_used_mb(place.path) for place in places if place.path != Path(tempfile.gettempdir()))
        bounds = [place.may_grow_mb for place in places]
        most_mb = sum(bound for bound in bounds if bound is not None)
        names = ", ".join(f"{place.name} {_size(place.may_grow_mb)}" for place in places)
        found = f"{_size(free_mb)} free; bounds: {names}"
        if free_mb < LEAST_FREE_MB:
            return Finding(what, "problem", found, "Free some room, or name another directory.")
        if None in bounds or most_mb > free_mb + used_mb:
            return Finding(
                what, "warning", found,
                "What may be written does not fit: lower the bounds (--jobs-mb, --history-mb, --zeek-logs-mb, "
                "--max-uploads), or give it more room.",
            )  # fmt: skip
        return Finding(what, "ok", found)


def _paths(places: list[_Place]) -> str:
    return ", ".join(sorted({str(place.path) for place in places}))


def _names(places: list[_Place]) -> str:
    return ", ".join(dict.fromkeys(place.name for place in places))


def _places(settings: Settings) -> list[_Place]:
    places = [_Place("uploads", Path(tempfile.gettempdir()), settings.max_uploads * settings.max_upload_mb)]
    places.append(_Place("jobs", settings.data_dir, settings.jobs_mb))
    if settings.history == "sqlite":
        places.append(_Place("history", settings.data_dir, settings.history_mb))
    if settings.interface:
        logs = settings.zeek_dir or settings.data_dir / "zeek"
        places.append(_Place("Zeek's logs", logs, settings.zeek_logs_mb * len(settings.interface) or None))
    for output in parse_outputs(settings.output):
        if isinstance(output, EveOutput):
            bound = output.rotate_mb * (output.keep + 1) or None
            places.append(_Place("EVE", Path(output.path).absolute().parent, bound))
        elif output.spool_mb:
            places.append(_Place("what waits for outputs", settings.data_dir, output.spool_mb))
    if settings.audit_log is not None:
        places.append(_Place("audit log", settings.audit_log.absolute().parent, 0))
    if settings.state_dir is not None:
        places.append(_Place("open windows", settings.state_dir, 0))
    return places


def _existing(path: Path) -> Path:
    """The directory, or the nearest above it that is there: where it will be made."""
    for directory in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            if directory.is_dir():
                return directory
    return Path("/")


def _used_mb(path: Path) -> int:
    """What the files right in a directory and one below take: the history, jobs and Zeek's logs."""
    used = 0
    for pattern in ("*", "*/*", "*/*/*"):
        for file in path.glob(pattern):
            with contextlib.suppress(OSError):
                used += file.stat().st_size if file.is_file() else 0
    return used >> 20


def _size(mb: int | None) -> str:
    if mb is None:
        return "without bound"
    return f"{mb:,} MiB" if mb < 10_240 else f"{mb / 1024:,.0f} GiB"


class Port:
    """The port is free, or a tapline listens there already."""

    what = "port"

    def __init__(self, host: str, port: int, *, tls: bool = False) -> None:
        self._host, self._port, self._tls = host, port, tls

    def run(self) -> Iterator[Finding]:
        """Listen for a moment."""
        what = f"{self.what} {self._port}"
        if self._port == 0:
            yield Finding(what, "ok", "any that is free is taken")
            return
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            socket.create_server(address, family=family).close()
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (")[0].lower()
            if _is_tapline(self._host, self._port, tls=self._tls):
                yield Finding(what, "ok", "a tapline serves there already")
            else:
                yield Finding(
                    what, "problem", f"cannot listen on {self._host}: {reason}",
                    "Give another --port or --host, or end what listens there: ss -ltnp",
                )  # fmt: skip
            return
        yield Finding(what, "ok", f"free on {self._host}")


def _is_tapline(host: str, port: int, *, tls: bool) -> bool:
    """Whether a tapline answers; its certificate is not checked, for nothing is told to it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}/healthz"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=ANSWER_SECONDS) as answer:
            return bool(json.loads(answer.read(1024)) == {"status": "ok"})
    except (OSError, ValueError, urllib.error.URLError):
        return False


class _Timex(ctypes.Structure):
    """The head of `struct timex` of adjtimex(2); the kernel fills the rest."""

    _fields_ = [
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_char * 256),
    ]  # fmt: skip


class Clock:
    """Something keeps the clock right: times of flows are this machine's, and are joined with those of others."""

    what = "clock"

    def run(self) -> Iterator[Finding]:
        """Ask the kernel whether its clock is synchronised, which needs no rights."""
        if sys.platform != "linux":
            yield Finding(self.what, "not applicable", "the kernel is asked on Linux alone")
            return
        asked = _Timex()
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(asked))
        if state < 0:
            yield Finding(self.what, "not applicable", f"the kernel does not tell: {os.strerror(ctypes.get_errno())}")
        elif state == TIME_ERROR or asked.status & STA_UNSYNC:
            yield Finding(
                self.what, "warning", "the kernel says that nothing keeps it synchronised",
                "Run chrony (with rtcsync) or systemd-timesyncd: timedatectl, chronyc tracking.",
            )  # fmt: skip
        else:
            yield Finding(self.what, "ok", f"synchronised, to {asked.maxerror / 1000:.0f} ms at most")


class Resources:
    """Enough memory and cores for what settings ask."""

    what = "memory and cores"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def run(self) -> Iterator[Finding]:
        """Read what is available, within the limit of the container."""
        cores, available_mb = len(os.sched_getaffinity(0)), _available_mb()
        settings = self._settings
        found = f"{_size(available_mb)} available, {cores} {'core' if cores == 1 else 'cores'}"
        readers_mb = settings.parse_memory_mb * (settings.max_uploads + settings.max_jobs)
        if available_mb < LEAST_MEMORY_MB:
            yield Finding(self.what, "problem", found, f"A service with models takes {LEAST_MEMORY_MB:,} MiB and more.")
        elif readers_mb > available_mb:
            yield Finding(
                self.what, "warning", f"{found}; reading captures may take {_size(readers_mb)} at most",
                "Large captures may end the service: lower --parse-memory-mb, --max-uploads or --max-jobs.",
            )  # fmt: skip
        elif settings.threads > cores:
            yield Finding(self.what, "warning", f"{found}, {settings.threads} threads", "Leave --threads out.")
        else:
            yield Finding(self.what, "ok", found)


def _available_mb() -> int:
    """Memory that can be had: of the machine, or of the control group if that has less."""
    pairs = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = next((int(words[1]) >> 10 for words in pairs if words[0] == "MemAvailable:"), 0)
    with contextlib.suppress(OSError, ValueError):  # `max` is no number: no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        found = min(found, (limit - used) >> 20)
    return found


class Python:
    """Which Python and which libraries run: what to tell when something is asked."""

    what = "Python"

    def run(self) -> Iterator[Finding]:
        """Read the versions of what is installed."""
        libraries = []
        for name in ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "nicegui"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                libraries.append(f"{name} {metadata.version(name)}")
        found = f"{platform.python_version()}, tapline {version()}, {', '.join(libraries)}"
        if sys.version_info < (3, 11):  # noqa: UP036 (an old one may have been forced on it)
            yield Finding(self.what, "problem", found, "tapline needs Python 3.11 or later.")
        elif version() == "unknown":
            yield Finding(self.what, "warning", found, f"Install it: pip install '{DISTRIBUTION}[cpu]'.")
        else:
            yield Finding(self.what, "ok", found)
