"""Opens what a user names - a capture, NDJSON, standard input - as something that yields flows."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast

from tapline.models.flow import Flow
from tapline.service.sources.capture import CaptureError, CaptureReader, ReadOptions
from tapline.service.sources.ndjson import FlowLines
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.formats import MAGIC_BYTES, is_plain_capture
from tapline.service.sources.zeek_reader import ZeekReader

ReaderName = Literal["auto", "zeek", "builtin"]
"""`auto` is the built-in reader: it gives the flows that Zeek gives, faster, and as they end."""

_CAPTURE_NAME = re.compile(r"\.(pcap|pcapng|cap|dmp)(\.(gz|zst))?$", re.IGNORECASE)
_NO_CAPTURE = "no capture in this directory or below: expected pcap or pcapng files"


class FlowInput(Protocol):
    """Flows of one input, iterated once; the counters grow while it is read."""

    @property
    def packets(self) -> int:
        """Packets read."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes read, as stored."""
        ...

    @property
    def bytes_total(self) -> int | None:
        """Bytes to read, None where that is not known."""
        ...

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out, by reason."""
        ...

    @property
    def warning(self) -> str | None:
        """What went wrong on the way, in one sentence, or None."""
        ...

    def __iter__(self) -> Iterator[Flow]: ...


def inputs_of(names: Iterable[str], *, keep_bad: bool = False) -> Iterator[str]:
    """The names, in the place of a directory those of the captures in it and below, by name; links to directories are
    not followed.

    A file that is called a capture is one here, whatever it holds: `open_input` says what is wrong with it. With
    `keep_bad` so is a directory that cannot be read or holds no capture.

    Raises:
        CaptureError: a directory cannot be read, or holds no capture.
    """
    for name in names:
        if name == "-" or not Path(name).is_dir():
            yield name
            continue
        bad: list[str] = []
        found = False
        for path in _files_below(Path(name), bad if keep_bad else None):
            if _is_capture(path):
                found = True
                yield str(path)
        yield from bad
        if not (found or bad):
            if not keep_bad:
                raise CaptureError(f"{name}: {_NO_CAPTURE}")
            yield name


def _files_below(directory: Path, bad: list[str] | None) -> Iterator[Path]:
    """The files of a directory and below; `bad` takes the directories that cannot be read, None: one is an error."""

    def fail(error: OSError) -> None:
        if bad is None:
            raise CaptureError(f"{error.filename}: cannot read the directory: {error.strerror}")
        bad.append(os.fsdecode(error.filename))

    for folder, folders, files in os.walk(directory, onerror=fail):
        folders.sort()
        yield from (Path(folder, file) for file in sorted(files))


def is_capture_name(name: str) -> bool:
    """Whether a file of this name is called a capture, compressed or not."""
    return _CAPTURE_NAME.search(name) is not None


def _is_capture(path: Path) -> bool:
    """Whether a regular file is called a capture or begins as one does, compressed or not; True of a link of such a
    name to nothing and of a file that cannot be opened, too."""
    called_so = is_capture_name(path.name)
    if not path.is_file():
        return called_so and not path.exists()
    if called_so:
        return True
    try:
        source = ByteSource(path, max_bytes=None)
    except CaptureError:  # empty, or not to be opened
        return path.stat().st_size > 0
    try:
        head = b""
        while len(head) < MAGIC_BYTES and (data := source.read_some(MAGIC_BYTES - len(head))):
            head += data
    finally:
        source.close()
    return is_plain_capture(head)


def open_input(name: str, reader: ReaderName, options: ReadOptions) -> FlowInput:
    """Open a path, or standard input for `-`.

    Raises:
        CaptureError: there is no such file, it is empty or a directory, or the reader asked for is not there.
    """
    if name == "-":
        return open_stream(cast(io.BufferedReader, sys.stdin.buffer), reader, options)
    path = Path(name)
    try:
        with path.open("rb") as probe:
            first = probe.read(1)
        if first == b"{":
            return FlowLines(path)
    except IsADirectoryError:
        raise CaptureError(_NO_CAPTURE) from None
    except OSError as error:
        raise CaptureError(unreadable(name, error)) from None
    return _open_capture(path, reader, options)


def open_stream(file: io.BufferedReader, reader: ReaderName, options: ReadOptions) -> FlowInput:
    """The same of a stream, which whoever opened it closes.

    Raises:
        CaptureError: it is empty, or the reader asked for is not there.
    """
    return FlowLines(file) if file.peek(1)[:1] == b"{" else _open_capture(file, reader, options)


def unreadable(name: str, error: OSError) -> str:
    """Why a path cannot be read, and what may help."""
    hint = ""
    if isinstance(error, FileNotFoundError) and any(sign in name for sign in "*?["):
        hint = "; patterns are not expanded here: give the files (in Python by glob.glob)"
    return f"cannot read it: {error.strerror}{hint}"


def _open_capture(source: Path | BinaryIO, reader: ReaderName, options: ReadOptions) -> FlowInput:
    return ZeekReader(source, options) if reader == "zeek" else CaptureReader(source, options)
