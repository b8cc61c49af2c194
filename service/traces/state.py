"""Open windows on disk, so that a restart goes on with them: a snapshot now and then, and a journal of what was closed.

A window is in the journal before its verdict goes out, so that no verdict goes out twice, also after a kill. Nothing is
pickled; a file that cannot be read, or that another checkpoint wrote, is left out with a warning.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from models.checkpoint import TracegramCheckpoint
from models.trace import TraceSettings
from service.traces.records import TraceFlow, WindowKey
from service.traces.window import SubjectKey, SubjectWindows, Window
from service.traces.windows import SourceClock, TraceWindows

log = structlog.get_logger()

STATE_VERSION = 1
SNAPSHOT = "traces.state"
JOURNAL = "traces.closed"
OLD_JOURNAL = "traces.closed.old"

_LENGTH = struct.Struct(">I")
_PIECE_BYTES = 1 << 20
_MAX_RECORD_BYTES = 64 << 20


class StateError(ValueError):
    """A snapshot cannot be used; the message says why."""


class _Header(msgspec.Struct, tag="header"):
    version: int
    checkpoint: str
    settings: TraceSettings
    feature_size: int


class _SourceRecord(msgspec.Struct, tag="source"):
    name: str
    newest_us: int
    seen_at: float


class _WindowRecord(msgspec.Struct):
    index: int
    cut: int
    early_label: str | None
    flows: list[TraceFlow]


class _SubjectRecord(msgspec.Struct, tag="subject"):
    source: str
    subject: str
    base_us: int
    next_index: int
    windows: list[_WindowRecord]


class _End(msgspec.Struct, tag="end"):
    """The last record: without it the file is not whole."""

    records: int


_Record = _Header | _SourceRecord | _SubjectRecord | _End
_RECORDS: msgspec.msgpack.Decoder[_Record] = msgspec.msgpack.Decoder(_Record)


class TraceState:
    """The files of a state directory. Sources that are captures are not kept: they are played from their beginning."""

    def __init__(self, directory: Path, checkpoint: TracegramCheckpoint) -> None:
        """Raises: StateError, where the directory cannot be written."""
        self._directory = directory
        self.keep_for(checkpoint)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._journal = self._open_journal()
        except OSError as error:
            raise StateError(f"{directory}: cannot keep the state of traces there: {error.strerror}") from None

    def keep_for(self, checkpoint: TracegramCheckpoint) -> None:
        """Keep the windows of that checkpoint from the next snapshot on."""
        self._header = _Header(
            STATE_VERSION, f"{checkpoint.name} {checkpoint.version}", checkpoint.trace, checkpoint.network.feature_size
        )
        self._window_us = checkpoint.trace.window_us

    def load(self, windows: TraceWindows) -> None:
        """Put back what was open, less what was closed since."""
        if not (self._directory / SNAPSHOT).exists():
            return
        closed: dict[SubjectKey, int] = {}
        for window in self._closed():
            subject = SubjectKey(window.source, window.subject)
            closed[subject] = max(window.start_us, closed.get(subject, 0))
        try:
            for record in self._read():
                if isinstance(record, _SourceRecord):
                    windows.restore_source(record.name, SourceClock(record.newest_us, record.seen_at))
                elif isinstance(record, _SubjectRecord):
                    key, subject_windows = self._subject(record)
                    self._restore(windows, key, subject_windows, closed.pop(key, None))
        except (StateError, OSError) as error:
            log.warning(
                "open traces of the last run were not all read", directory=str(self._directory), reason=str(error)
            )
        known = windows.clocks
        for key, start_us in closed.items():
            if key.source in known:
                self._restore(windows, key, SubjectWindows(start_us, self._window_us), start_us)
        log.info("open traces of the last run", flows=windows.open_flows, windows=windows.open_windows)

    def closed(self, key: WindowKey) -> None:
        """Note that a window's final verdict goes out."""
        try:
            self._journal.write(msgspec.json.encode([key.source, key.subject, key.start_us]) + b"\n")
            self._journal.flush()
        except OSError as error:
            log.warning("a closed trace was not noted", reason=error.strerror)

    async def save(self, windows: TraceWindows) -> None:
        """Write a snapshot beside the last one and put it in its place; between its pieces others may work.

        Raises:
            OSError: it cannot be written; the last one and its journal stay.
        """
        self._rotate_journal()
        staging = self._directory / f".{SNAPSHOT}.{os.getpid()}"
        try:
            with _open_private(staging, os.O_TRUNC) as file:
                for piece in _pieces(self._records(windows)):
                    await asyncio.to_thread(file.write, piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            staging.replace(self._directory / SNAPSHOT)
        finally:
            staging.unlink(missing_ok=True)
        (self._directory / OLD_JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _records(self, windows: TraceWindows) -> Iterator[_Record]:
        written = 0
        yield self._header
        for name, clock in list(windows.clocks.items()):
            if not windows.is_capture(name):
                yield _SourceRecord(name, clock.newest_us, clock.seen_at)
        for key in list(windows.subjects):
            subject = windows.subjects.get(key)
            if subject is None or windows.is_capture(key.source):
                continue
            kept = [
                _WindowRecord(index, window.cut, window.early_label, list(window.flows.values()))
                for index, window in subject.windows.items()
            ]
            written += 1
            yield _SubjectRecord(key.source, key.subject, subject.base_us, subject.next_index, kept)
        yield _End(written)

    def _read(self) -> Iterator[_Record]:
        with (self._directory / SNAPSHOT).open("rb") as file:
            header = _next_record(file)
            if not isinstance(header, _Header) or header != self._header:
                raise StateError("it is of another checkpoint, other settings or another version")
            subjects = 0
            while not isinstance(record := _next_record(file), _End):
                subjects += isinstance(record, _SubjectRecord)
                yield record
            if record.records != subjects:
                raise StateError("it is not whole")

    def _subject(self, record: _SubjectRecord) -> tuple[SubjectKey, SubjectWindows]:
        width = 4 * self._header.feature_size
        if any(len(flow.embedding) != width for window in record.windows for flow in window.flows):
            raise StateError("an embedding has another width")
        kept = {
            window.index: Window({flow.uid: flow for flow in window.flows}, window.cut, window.early_label)
            for window in record.windows
        }
        subject = SubjectWindows(record.base_us, self._window_us, record.next_index, kept)
        return SubjectKey(record.source, record.subject), subject

    @staticmethod
    def _restore(windows: TraceWindows, key: SubjectKey, subject: SubjectWindows, closed_us: int | None) -> None:
        """Put a subject back without its windows up to the one that started at `closed_us`."""
        if closed_us is not None:
            subject.next_index = max(subject.next_index, subject.index_of(closed_us) + 1)
            subject.windows = {index: kept for index, kept in subject.windows.items() if index >= subject.next_index}
        windows.restore_subject(key, subject)

    def _closed(self) -> Iterator[WindowKey]:
        for name in (OLD_JOURNAL, JOURNAL):
            path = self._directory / name
            if not path.exists():
                continue
            for line in path.read_bytes().splitlines():
                try:
                    source, subject, start_us = msgspec.json.decode(line, type=tuple[str, str, int])
                except msgspec.DecodeError:  # the last line of a killed service
                    continue
                yield WindowKey(source, subject, start_us)

    def _open_journal(self) -> BinaryIO:
        return _open_private(self._directory / JOURNAL, os.O_APPEND)

    def _rotate_journal(self) -> None:
        """What is closed from now on belongs to the next snapshot; what was, is kept until that is written."""
        self._journal.close()
        with _open_private(self._directory / OLD_JOURNAL, os.O_APPEND) as old:
            old.write((self._directory / JOURNAL).read_bytes())
        (self._directory / JOURNAL).unlink()
        self._journal = self._open_journal()


def _open_private(path: Path, how: int) -> BinaryIO:
    """Open a file to write, which nobody else may read: it names hosts."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "wb")


def _pieces(records: Iterator[_Record]) -> Iterator[bytes]:
    """Records with their lengths, joined to pieces worth a write."""
    piece = bytearray()
    for record in records:
        body = msgspec.msgpack.encode(record)
        piece += _LENGTH.pack(len(body)) + body
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _next_record(file: BinaryIO) -> _Record:
    length = file.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise StateError("it is not whole")
    size = _LENGTH.unpack(length)[0]
    if size > _MAX_RECORD_BYTES:
        raise StateError("it is damaged")
    try:
        return _RECORDS.decode(file.read(size))
    except msgspec.DecodeError:
        raise StateError("it is damaged") from None
