"""What settings expose: who can reach the service, where flows come from, what is written where and how large it may
get, what is sent, and which files are read.

A room says it of a setting of its own in the table: `Field(..., json_schema_extra={"exposes": "written", "bound":
"history_mb"})`, with the name of the setting that bounds it. What says nothing is told by its type: a path as a file
that is read, and an address as another machine.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from tapline.service.access.key_file import KeyFile
from tapline.service.access.keys import API_KEY, AccessKey, KeyRing, read_line
from tapline.service.access.scopes import SCOPES, Scope
from tapline.service.settings import Settings, is_loopback
from tapline.service.sinks.output_url import EveOutput, parse_outputs
from tapline.service.sinks.outputs import SPOOLS

Section = Literal["reached", "flows", "written", "sent", "read"]

TITLES: dict[Section, str] = {
    "reached": "Who can reach it",
    "flows": "Where flows come from",
    "written": "What is written, and how large it may get",
    "sent": "What is sent elsewhere",
    "read": "What is read",
}

_MAY: dict[Scope, str] = {
    "read": "verdicts, metrics and the dashboard",
    "classify": "verdicts, metrics and the dashboard, and captures, flows and jobs of its own",
    "admin": "everything: also to load models",
}

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:\S")
_TOLD = {"host", "zeek", "interface", "replay", "data_dir", "history", "zeek_dir", "output", "forwarded_allow_ips"}
"""Settings of which a sentence is made here."""


@dataclass(frozen=True)
class Exposure:
    """One thing that settings expose: what, and the bounds or people it is for. `is_open`: more than one may expect."""

    section: Section
    what: str
    detail: str
    is_open: bool = False


def exposures(settings: Settings) -> list[Exposure]:
    """Everything that the settings expose, in the order of `TITLES`; without secrets.

    Raises:
        KeysError: keys, or their file, cannot be used.
    """
    found = [*_reached(settings), *_flows(settings), *_written(settings), *_sent(settings), *_by_table(settings)]
    return sorted(found, key=lambda entry: list(TITLES).index(entry.section))


def _reached(settings: Settings) -> Iterator[Exposure]:
    here = is_loopback(settings.host)
    keyed = bool(settings.api_key or settings.keys or settings.keys_file)
    scheme = "https" if settings.tls_cert else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    who = "this machine alone" if here else "every machine that has a way to this one"
    encrypted = "encrypted" if scheme == "https" else "not encrypted"
    yield Exposure(
        "reached", f"{scheme}://{host}:{settings.port}", f"{who}; {encrypted}", not here and scheme == "http"
    )
    pages = "with the dashboard at /" if settings.dashboard == "on" else "without a dashboard"
    for scope, names in keys_by_scope(settings).items():
        yield Exposure("reached", f"with a key of {scope}", f"{_MAY[scope]} ({', '.join(names)})")
    yield Exposure(
        "reached",
        "with no key",
        "/healthz, /readyz, /docs, and to sign in"
        if keyed
        else f"everything, {pages}: also to load models and to read the history",
        not keyed and not here,
    )
    for network in settings.forwarded_allow_ips:
        yield Exposure("reached", f"by the proxy {network}", "which is believed whom it asks for")
    yield Exposure("reached", "by other names", ", ".join(settings.served_names) or "by none but its own")


def keys_by_scope(settings: Settings) -> dict[Scope, list[str]]:
    """The names of the keys that let in, by what they may do.

    Raises:
        KeysError: keys, or their file, cannot be used.
    """
    own = [AccessKey(API_KEY, "admin", b"")] if settings.api_key is not None else []
    given = [read_line(line) for line in settings.keys]
    file = KeyFile(settings.keys_file, time.monotonic).ring() if settings.keys_file is not None else KeyRing()
    found: dict[Scope, list[str]] = {}
    for scope in SCOPES:
        if names := [key.name for key in (*own, *given, *file) if key.scope == scope]:
            found[scope] = names
    return found


def _flows(settings: Settings) -> Iterator[Exposure]:
    shown = settings.model_dump(mode="json", include={"zeek"})["zeek"]
    for url in shown:
        yield Exposure("flows", url, "a sensor's bus" + ("" if "wss://" in url else ", not encrypted"))
    for interface in settings.interface:
        yield Exposure("flows", interface, "a Zeek of its own on the interface, its bus on a free port of 127.0.0.1")
    if settings.replay:
        yield Exposure("flows", str(settings.replay), "played through the live path")
    yield Exposure("flows", "uploads", f"captures to {settings.max_upload_mb:,} MiB, {settings.max_uploads} at a time")
    if settings.spool_verdicts and (shown or settings.interface):
        yield Exposure("sent", "verdicts to Zeek", f"up to {settings.spool_verdicts:,} wait for a sensor that is away")


def _written(settings: Settings) -> Iterator[Exposure]:
    uploads_mb = settings.max_uploads * settings.max_upload_mb
    yield Exposure("written", f"{tempfile.gettempdir()} ($TMPDIR)", f"uploads while they are read: {uploads_mb:,} MiB")
    content = ", with content bytes" if settings.history_content else ", without content bytes"
    kept = f"verdicts: {settings.history_mb:,} MiB, {settings.history_days:g} days{content}"
    if settings.history == "sqlite":
        yield Exposure("written", str(settings.data_dir / "history.db"), kept)
    elif settings.history != "none":
        where = settings.model_dump(mode="json", include={"history"})["history"]
        yield Exposure("written" if where.startswith("sqlite") else "sent", where, kept)
    jobs = f"captures and results of jobs: {settings.jobs_mb:,} MiB, {settings.job_days:g} days"
    yield Exposure("written", str(settings.data_dir / "jobs"), jobs)
    if settings.interface:
        bound = f"{settings.zeek_logs_mb:,} MiB" if settings.zeek_logs_mb else "no bound"
        logs = settings.zeek_dir or settings.data_dir / "zeek"
        yield Exposure("written", str(logs), f"logs of Zeek: {bound} for each run", not settings.zeek_logs_mb)


def _sent(settings: Settings) -> Iterator[Exposure]:
    """Outputs: files as what is written, others as what is sent, with the bounds of what waits."""
    for output in parse_outputs(settings.output):
        what = ", ".join(output.records)
        if isinstance(output, EveOutput):
            kept = f"{output.keep + 1} files of {output.rotate_mb:,} MiB" if output.rotate_mb else "files without bound"
            yield Exposure("written", output.path, f"{what}: {kept}", not output.rotate_mb)
            continue
        yield Exposure("sent", output.shown, what)
        if output.spool_mb:
            spools = str(settings.data_dir / SPOOLS)
            yield Exposure("written", spools, f"what waits for {output.shown}: {output.spool_mb:,} MiB")


def _by_table(settings: Settings) -> Iterator[Exposure]:
    """What the table itself says of settings that are given."""
    shown = settings.model_dump(mode="json")
    for name, field in Settings.model_fields.items():
        if name in _TOLD:
            continue
        value = getattr(settings, name)
        texts = shown[name] if isinstance(value, list) else [shown[name]]
        for text in (str(text) for text in texts if text is not None):
            if section := _section(field, value, text):
                yield Exposure(section, text, f"{name}: {_detail(settings, field)}")


def _section(field: FieldInfo, value: object, text: str) -> Section | None:
    said: Section | None = _extra(field).get("exposes")
    if said is not None:
        return said
    if isinstance(value, Path):
        return "read"
    return "sent" if isinstance(value, list) and _ADDRESS.match(text) and "::" not in text else None


def _detail(settings: Settings, field: FieldInfo) -> str:
    description = field.description or ""
    bound = _extra(field).get("bound")
    if bound is None:
        return description
    return f"{getattr(settings, bound):,} {'MiB; ' if bound.endswith('_mb') else ''}{description}"


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
