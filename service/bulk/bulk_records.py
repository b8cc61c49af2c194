"""What a bulk run speaks of: its captures, what its directory was made with, and what came of each capture."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from tapline.models.checkpoint import MANIFEST, file_sha256, read_any_manifest
from tapline.models.foreign_text import clean
from tapline.service.python.input_run import shown_name
from tapline.service.sources.inputs import ReaderName

FORMAT_VERSION = 1
_KEY_NAME_CHARS = 64


class BulkError(Exception):
    """A bulk run cannot go on, whatever the capture; the message says why and what to do."""


class BulkCapture(msgspec.Struct, frozen=True):
    """A capture: its absolute `path` or URL, the `name` that `tapline classify` would call it by, its size as stored (0
    where nobody knows), and `changed`, a text that is another once the capture is: time of change or entity tag."""

    path: str
    name: str
    size_bytes: int
    changed: str

    @property
    def key(self) -> str:
        """What its files are called in the directory of a run: the same in every run, another for every path."""
        name = re.sub(r"[^0-9A-Za-z._-]", "_", posixpath.basename(self.path))[:_KEY_NAME_CHARS].lstrip(".")
        return f"{name}-{hashlib.sha256(self.path.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"

    @property
    def shown_path(self) -> str:
        """The path as text: a file's name need not be any."""
        return shown_name(self.path)


class ModelUsed(msgspec.Struct, frozen=True):
    """A model whose verdicts are in a directory."""

    name: str
    version: str
    manifest_sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Made(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the verdicts in a directory were made with; those of one directory with the same."""

    flows: ModelUsed
    traces: list[ModelUsed]
    ports: bool
    reader: ReaderName
    format_version: int = FORMAT_VERSION


class CaptureAccount(msgspec.Struct, kw_only=True, frozen=True):
    """What came of one capture. With an `error` there are no rows of it; with a `warning` it was read only in part.

    `flows` were seen; `classified` of them have a verdict, `failed` a row without one; others were not asked about.
    `run` and `tries`: in which run it was begun last, and how often in that.
    `trace_failures`: windows that a trace model failed on, and flows that its encoder did.
    """

    capture: str
    key: str
    size_bytes: int
    changed: str
    run: str
    tries: int
    flows: int = 0
    classified: int = 0
    failed: int = 0
    traces: int = 0
    trace_failures: int = 0
    packets: int = 0
    skipped: dict[str, int] = {}
    warning: str | None = None
    error: str | None = None

    @property
    def rows(self) -> int:
        """Rows of flows."""
        return self.classified + self.failed

    @property
    def is_whole(self) -> bool:
        """Whether everything of the capture has its verdict."""
        return not (self.error or self.warning or self.failed or self.trace_failures)

    def is_of(self, capture: BulkCapture) -> bool:
        """Whether it is of the capture as that is now."""
        return (self.capture, self.size_bytes, self.changed) == (
            capture.shown_path, capture.size_bytes, capture.changed,
        )  # fmt: skip


def left(captures: Sequence[BulkCapture], accounts: dict[str, CaptureAccount]) -> list[BulkCapture]:
    """The captures that are not done: those without an account, with an error, or that changed since."""
    found = []
    for capture in captures:
        account = accounts.get(capture.key)
        if account is None or account.error is not None or not account.is_of(capture):
            found.append(capture)
    return found


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    said = str(error).strip().partition("\n")[0]
    return clean(said if isinstance(error, BulkError) else f"{type(error).__name__}: {said}".rstrip(": "), 300)


def made_with(flows: Path, traces: Iterable[Path], *, ports: bool, reader: ReaderName) -> Made:
    """What the verdicts of these checkpoints are made with.

    Raises:
        CheckpointError: one is none.
    """
    return Made(_used(flows), sorted(map(_used, traces), key=str), ports, reader)


def difference(before: Made, now: Made) -> str | None:
    """What of a directory's making would be another now, in words; None where nothing would."""
    pairs = [
        ("the layout", str(before.format_version), str(now.format_version)),
        ("flows by", _told([before.flows]), _told([now.flows])),
        ("traces by", _told(before.traces), _told(now.traces)),
        ("ports", "on" if before.ports else "off", "on" if now.ports else "off"),
        ("the reader", before.reader, now.reader),
    ]
    for what, then, here in pairs:
        if then != here:
            return f"{what} {then}, now {here}"
    if before != now:
        return f"another checkpoint of the name and version of one of {_told([now.flows, *now.traces])}"
    return None


def _used(directory: Path) -> ModelUsed:
    checkpoint = read_any_manifest(directory)
    return ModelUsed(checkpoint.name, checkpoint.version, file_sha256(directory / MANIFEST))


def _told(models: Iterable[ModelUsed]) -> str:
    return ", ".join(map(str, models)) or "none"
