"""The files of a checkpoint directory: bounded, inside it, and the ones that its manifest names, or not read at all."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Annotated

import msgspec

MAX_FILE_BYTES = 2 << 30
"""Largest file of a checkpoint; an ONNX file cannot be larger, it is one protobuf message."""

HUB_PREFIX = "hf:"
"""How the name of a repository of a Hub begins where a checkpoint directory may stand."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


class CheckpointError(ValueError):
    """A checkpoint cannot be served; the message says which, why and what to do."""


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and SHA-256 of a file of the checkpoint."""

    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]
    sha256: str


def is_file_name(name: str) -> bool:
    """Whether it is the name of a file in a directory, and no way out of it."""
    return _NAME.fullmatch(name) is not None


def refuse_remote(checkpoint: str | Path) -> None:
    """Nothing is fetched by using a checkpoint: one of a Hub has to be pulled before.

    Raises:
        CheckpointError: it is one of a Hub; the message says the command.
    """
    parts = Path(checkpoint).parts  # it may have been made absolute
    place = next((place for place, part in enumerate(parts) if part.startswith(HUB_PREFIX)), None)
    if place is not None and not Path(checkpoint).exists():
        named = "/".join(parts[place:])
        raise CheckpointError(
            f"{named}: nothing is fetched unless asked: run `tapline models pull {named}`, and give the directory that "
            "it names"
        )


def read_recorded(path: Path, record: FileRecord) -> bytes:
    """The content of a file, which is the one that was recorded.

    Raises:
        CheckpointError: it is another, no plain file, or outside its directory.
    """
    content = read_inside(path, record.size_bytes)
    if len(content) != record.size_bytes:
        raise CheckpointError(f"{path}: {len(content)} bytes, the manifest says {record.size_bytes}: copy it again")
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one in the manifest: copy it again")
    return content


def read_inside(path: Path, most_bytes: int) -> bytes:
    """The content of a plain file that lies where its path says; links may lead to files of the same directory only.

    Raises:
        CheckpointError: it cannot be read, has more bytes, or is a device, a pipe, or a link that leads elsewhere.
    """
    try:
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise CheckpointError(f"{path}: a link out of the checkpoint's directory, expected a file: copy it there")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path}: expected a plain file: give another checkpoint")
            if found.st_size > most_bytes:
                raise CheckpointError(f"{path}: {found.st_size} bytes, expected {most_bytes} at most: copy it again")
            return file.read(most_bytes + 1)[:most_bytes]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except RuntimeError:  # before Python 3.13 links in a circle are no OSError
        raise CheckpointError(f"{path}: a link that leads nowhere, expected a file: copy it there") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
