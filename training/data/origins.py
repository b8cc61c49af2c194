"""What `extract` reads: captures, log directories and flow lines under a folder, each to the flows with payload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tapline.models.flow import Flow, HeadsKind
from tapline.service.sources.capture import CaptureError, CaptureReader, ReadOptions, check_capture
from tapline.service.sources.logs import LogDirectory, LogError, is_log_directory, is_log_of
from tapline.service.sources.ndjson import FlowLines
from tapline.service.sources.zeek_reader import FlowLog

FLOW_LOG = "tapline_flow"
_NOT_TRAFFIC = {".csv", ".md", ".txt", ".json"}


class ExtractError(ValueError):
    """Nothing could be extracted; the message says from what."""


@dataclass(frozen=True)
class Origin:
    """One capture, log directory or file of flow lines. The corpus is the name of the folder it was found under."""

    corpus: str
    capture: str
    path: Path

    @property
    def folder(self) -> str | None:
        """The first folder below the corpus, which is the label in the layout `root/label/capture`; None without."""
        first, slash, _ = self.capture.partition("/")
        return first if slash else None


@dataclass
class OriginReader:
    """Iterates once over the flows with payload of an origin; an unreadable one yields what came before the fault.

    `left_out` counts by reason what was not yielded, `warning` says what was wrong with the origin.
    """

    origin: Origin
    heads: HeadsKind = "none"
    left_out: Counter[str] = field(default_factory=Counter)
    warning: str = ""

    def __iter__(self) -> Iterator[Flow]:
        try:
            for flow in self._flows():
                if flow.payload_lengths:
                    yield flow
                else:
                    self.left_out["flow without payload"] += 1
        except (CaptureError, LogError) as error:
            self.left_out["capture unreadable"] += 1
            self.warning = str(error)

    def _flows(self) -> Iterable[Flow]:
        path = self.origin.path
        if path.is_dir():
            logs = LogDirectory(path)
            yield from logs
            self.left_out.update(logs.left_out)
            self.warning = logs.warning
        elif is_log_of(path, FLOW_LOG):
            log = FlowLog(path)
            yield from log
            self.warning = log.warning or ""
        else:
            reader = _open_lines(path) or CaptureReader(path, ReadOptions(heads=self.heads))
            yield from reader
            self.warning = reader.warning or ""


def _open_lines(path: Path) -> FlowLines | None:
    """The reader of NDJSON of `tapline features`, None for anything that does not begin as JSON."""
    try:
        with path.open("rb") as file:
            return FlowLines(path) if file.read(1) == b"{" else None
    except OSError as error:
        raise CaptureError(f"cannot read it: {error.strerror}") from None


def find_origins(roots: list[Path]) -> list[Origin]:
    """Every capture, log directory and file of flow lines under `roots` (or a root itself), in order of path.

    Raises:
        ExtractError: a root does not exist or holds nothing, or two have the same name: they would be one corpus.
    """
    found: list[Origin] = []
    by_name: dict[str, Path] = {}
    for root in roots:
        if not root.exists():
            raise ExtractError(f"{root}: no such file or directory")
        paths = [root] if root.is_file() else sorted(_below(root))
        if not paths:
            raise ExtractError(f"{root}: no capture and no conn.log in it")
        name = root.resolve().name
        if (other := by_name.setdefault(name, root)) is not root:
            raise ExtractError(
                f"{other} and {root}: of one name, so captures in them could not be told apart: give the folder above "
                "them, or rename one"
            )
        found += [
            Origin(name, path.relative_to(root).as_posix() if path != root else root.name, path) for path in paths
        ]
    return found


def find_distinct(roots: Sequence[Path]) -> tuple[list[Origin], list[Path]]:
    """As `find_origins`, with one path once, by whatever name it was given; and the paths that were left out for it.

    Raises:
        ExtractError: as there.
    """
    again: list[Path] = []
    given: dict[Path, Path] = {}
    for root in roots:
        if given.setdefault(root.resolve(), root) is not root:
            again.append(root)
    found: dict[Path, Origin] = {}
    for origin in find_origins(list(given.values())):
        if found.setdefault(origin.path.resolve(), origin) is not origin:
            again.append(origin.path)
    return list(found.values()), again


def _below(root: Path) -> Iterator[Path]:
    """Log directories, and the files that may be traffic: in a log directory what begins as a capture does, and of a
    capture and a log directory of its name the logs alone, which are of the same flows."""
    logs = {path for path in (root, *root.rglob("*")) if is_log_directory(path)}
    yield from logs
    named = {path.name for path in logs}
    for path in root.rglob("*"):
        if not path.is_file() or path.suffix in _NOT_TRAFFIC or {path.name, path.stem} & named:
            continue
        if path.parent not in logs or is_log_of(path, FLOW_LOG) or _begins_as_capture(path):
            yield path


def _begins_as_capture(path: Path) -> bool:
    try:
        check_capture(path)
    except CaptureError:
        return False
    return True
