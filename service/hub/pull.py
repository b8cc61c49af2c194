"""Pulling a checkpoint into a model repository: the files that its manifest names and no other, bounded and hashed as
they come, verified as every checkpoint is, and moved into place whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from tapline.models.card_header import MAX_CARD_BYTES
from tapline.models.checkpoint import (
    BASELINE,
    CARD,
    ENCODER_ONNX,
    ENCODER_ONNX_INT8,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    ONNX,
    ONNX_INT8,
    STUDENT,
    TRACE_ONNX,
    WEIGHTS,
    read_any_checkpoint,
)
from tapline.models.checkpoint_files import CheckpointError, FileRecord
from tapline.models.foreign_text import clean
from tapline.service.hub.places import HubError, Opened, explained, open_place, place_of

FILES = frozenset({BASELINE, STUDENT, WEIGHTS, ONNX, ONNX_INT8, ENCODER_ONNX, ENCODER_ONNX_INT8, TRACE_ONNX})
"""Files that a checkpoint may have beside manifest and card; nothing else is pulled or pushed."""
MAX_PULL_BYTES = 4 << 30
"""Most that the files of a checkpoint may have together."""
ORIGIN = "origin.json"
PIECE_BYTES = 1 << 20


class _Listed(msgspec.Struct):
    """What a manifest must say before anything else is read."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$")]
    files: dict[str, FileRecord]


class Origin(msgspec.Struct, frozen=True):
    """Where a pulled checkpoint came from, kept beside it: `revision` is the commit, None from a folder."""

    source: str
    revision: str | None
    manifest_sha256: str
    pulled: str


def pull(source: str, repository: Path) -> tuple[Path, Origin]:
    """Pull a checkpoint into `repository/NAME/VERSION`; gives where it is now, and where it came from.

    Raises:
        HubError: there is none, it is not what it should be, or that version is here already.
        OSError: it cannot be written.
    """
    opened = open_place(place_of(source))
    content = _read(opened, source, MANIFEST, MAX_MANIFEST_BYTES)
    listed = _listed(source, content)
    directory = repository / listed.name / listed.version
    if directory.exists():
        raise HubError(f"{directory}: is there already: remove it, or give another --to")
    origin = Origin(source, opened.revision, hashlib.sha256(content).hexdigest(), datetime.now(UTC).isoformat())
    with _staging(repository) as staging:
        (staging / MANIFEST).write_bytes(content)
        for name, record in listed.files.items():
            with _opened(opened, source, name) as file, (staging / name).open("wb") as target:
                _copy(file, target, f"{source}: {name}", record)
        with contextlib.suppress(FileNotFoundError):
            (staging / CARD).write_bytes(_read(opened, source, CARD, MAX_CARD_BYTES, needed=False))
        (staging / ORIGIN).write_bytes(msgspec.json.format(msgspec.json.encode(origin), indent=2) + b"\n")
        try:
            read_any_checkpoint(staging)
        except CheckpointError as error:
            raise HubError(f"{source}: {str(error).replace(f'{staging}', 'its checkpoint')}") from None
        directory.parent.mkdir(exist_ok=True)
        staging.chmod(0o755)
        staging.rename(directory)
    return directory, origin


def _listed(source: str, content: bytes) -> _Listed:
    try:
        listed = msgspec.json.decode(content, type=_Listed)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise HubError(f"{source}: its {MANIFEST} is no checkpoint manifest: {clean(str(error))}") from None
    if strange := sorted(listed.files.keys() - FILES):
        raise HubError(f"{source}: its manifest names {clean(strange[0])!r}, which is no file of a checkpoint")
    if (total := sum(record.size_bytes for record in listed.files.values())) > MAX_PULL_BYTES:
        raise HubError(f"{source}: {total} bytes in all, expected {MAX_PULL_BYTES} at most")
    return listed


@contextlib.contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A hidden folder in the repository, gone afterwards unless it was moved away, as are folders made for nothing."""
    made = [folder for folder in (repository, *repository.parents) if not folder.exists()]
    repository.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".pull-", dir=repository))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty: the checkpoint is there
                folder.rmdir()


@contextlib.contextmanager
def _opened(opened: Opened, source: str, name: str) -> Iterator[BinaryIO]:
    try:
        file = opened.open(name)
    except FileNotFoundError:
        raise HubError(f"{source}: no {name} there: not the layout of a tapline checkpoint") from None
    with closing(file):
        yield file


def _read(opened: Opened, source: str, name: str, most_bytes: int, *, needed: bool = True) -> bytes:
    """A small file. Raises FileNotFoundError where it is not `needed` and not there."""
    file = opened.open(name) if not needed else None
    with closing(file) if file else _opened(opened, source, name) as stream, explained(f"{source}: {name}"):
        content = b"".join(_pieces(stream, most_bytes + 1))
    if len(content) > most_bytes:
        raise HubError(f"{source}: {name} has more than {most_bytes} bytes")
    return content


def _copy(file: BinaryIO, target: BinaryIO, what: str, record: FileRecord) -> None:
    """Copy what a record says there is, and refuse anything else; never more than a byte beyond it is kept."""
    digest, size = hashlib.sha256(), 0
    with explained(what):
        for piece in _pieces(file, record.size_bytes + 1):
            digest.update(piece)
            size += len(piece)
            target.write(piece)
    if size > record.size_bytes or size < record.size_bytes:
        said = "more" if size > record.size_bytes else f"only {size}"
        raise HubError(f"{what}: {said} bytes where the manifest says {record.size_bytes}")
    if digest.hexdigest() != record.sha256:
        raise HubError(f"{what}: its SHA-256 is not the one in the manifest")


def _pieces(file: BinaryIO, most_bytes: int) -> Iterator[bytes]:
    left = most_bytes
    while left and (piece := file.read(min(PIECE_BYTES, left))):
        left -= len(piece)
        yield piece
