"""What figures of a checkpoint on captures are of: the checkpoint's files, captures, tables, how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tapline.installation import version
from tapline.models.checkpoint import file_sha256
from tapline.training.checking.own_captures import LabelSource, tool_of
from tapline.training.data.origins import Origin
from tapline.training.loop.run_files import fingerprint
from tapline.training.loop.scores import DRAWS, DRAWS_SEED


class TableFile(msgspec.Struct, frozen=True):
    """A table that was read."""

    name: str
    sha256: str


class CaptureFile(msgspec.Struct, frozen=True):
    """A capture that was read, as `corpus/capture`; of a directory of logs the bytes of its files together."""

    name: str
    size_bytes: int


class Provenance(msgspec.Struct, frozen=True):
    """Everything that decides the figures, and when they were made (`date`: ISO 8601, UTC).

    `checkpoint_files` are SHA-256 by name, as the manifest has them. `captures_sha256` is of the names and sizes of the
    captures, not of what they hold. `labels` is None where folders are labels; `tools` are the tables of other tools by
    name. `bootstrap_draws` over captures begin with `bootstrap_seed`.
    """

    tapline: str
    date: str
    checkpoint_files: dict[str, str]
    captures: list[CaptureFile]
    captures_sha256: str
    labels: TableFile | None
    column: str
    confidence: list[str]
    tolerance_seconds: float
    shift_seconds: float
    maps: list[str]
    tools: dict[str, TableFile]
    bootstrap_draws: int = DRAWS
    bootstrap_seed: int = DRAWS_SEED

    def settings(self, joined_by: Mapping[str, int]) -> dict[str, Any]:
        """What of it is a setting, as `compare` shows what differs."""
        corpora = sorted({capture.name.partition("/")[0] for capture in self.captures})
        return {
            "captures": f"{len(self.captures)} of {', '.join(corpora)}",
            "captures_sha256": self.captures_sha256,
            "labels": self.labels.name if self.labels else "folders",
            "labels_sha256": self.labels.sha256 if self.labels else "",
            "column": self.column,
            "rows": ", ".join(self.confidence),
            "tolerance_seconds": self.tolerance_seconds,
            "shift_seconds": self.shift_seconds,
            "joined_by": ", ".join(sorted(joined_by)),
            "maps": ", ".join(self.maps),
            "predictions": ", ".join(f"{table.sha256[:8]} {name}" for name, table in sorted(self.tools.items())),
        }


def provenance(
    files: Mapping[str, str], origins: Sequence[Origin], source: LabelSource, maps: Sequence[str]
) -> Provenance:
    """The provenance of an evaluation that is made now, of a checkpoint of these files by name."""
    captures = [CaptureFile(f"{origin.corpus}/{origin.capture}", _size_bytes(origin.path)) for origin in origins]
    return Provenance(
        tapline=version(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        checkpoint_files=dict(files),
        captures=captures,
        captures_sha256=fingerprint(sorted((capture.name, capture.size_bytes) for capture in captures)),
        labels=_table(source.table) if source.table else None,
        column=source.column,
        confidence=list(source.confidence),
        tolerance_seconds=source.tolerance_seconds,
        shift_seconds=source.shift_seconds,
        maps=[_map_told(text) for text in maps],
        tools={name: _table(path) for name, path in map(tool_of, source.predictions)},
    )


def provenance_facts(found: Provenance) -> dict[str, str]:
    """What a page says of it, by name."""
    files = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(found.checkpoint_files.items()))
    tables = [found.labels, *found.tools.values()]
    return {
        "made": f"{found.date} by tapline {found.tapline}",
        "checkpoint's files": files or "none recorded",
        "captures read": f"{len(found.captures):,}, {sum(capture.size_bytes for capture in found.captures):,} bytes; "
        f"names and sizes {found.captures_sha256[:12]}, one by one in evaluation.json",
        "tables": ", ".join(_told(table) for table in tables if table) or "none",
        "names mapped (--map)": ", ".join(found.maps) or "none",
        "bootstrap": f"{found.bootstrap_draws} draws of captures, seed {found.bootstrap_seed}",
    }


def _table(path: Path) -> TableFile:
    return TableFile(path.name, file_sha256(path))


def _told(table: TableFile) -> str:
    return f"{table.name} {table.sha256[:12]}"


def _map_told(text: str) -> str:
    path = Path(text)
    return _told(_table(path)) if path.is_file() else text


def _size_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.iterdir() if each.is_file()]
    return sum(each.stat().st_size for each in files)
