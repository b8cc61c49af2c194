"""Open windows on disk, so that a restart goes on with them: a snapshot now and then, and a journal of what was closed.

Each model has a folder of its own in the state directory. A window is in the journal before its verdict goes out, so
that no verdict goes out twice, also after a kill. Nothing is pickled. What another checkpoint wrote is left out with a
warning; of a damaged file what is whole is used, and the file is set aside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.trace import TraceSettings
from tapline.service.inference.flow_features import size_bytes
from tapline.service.log_lines import log
from tapline.service.traces.state_files import DamageError, DirectoryLock, Journal, framed, open_private, read_framed
from tapline.service.traces.trace_verdict import TraceFlow, WindowKey
from tapline.service.traces.window import SubjectKey, SubjectWindows, Window
from tapline.service.traces.windows import SourceClock, TraceWindows

STATE_VERSION = 2
SNAPSHOT = "traces.state"
DAMAGED = "traces.state.damaged"
JOURNAL = "traces.closed"

MAX_CLOSED_SUBJECTS = 100_000
"""Subjects of the journal that are remembered while a snapshot is read, the newest of them."""

WRITE_FAULTS = (OSError, MemoryError, OverflowError)
"""What writing may end by without ending more than itself: no room, no memory, a number that no file holds."""

_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PIECE_BYTES = 1 << 20
_STAGING = f".{SNAPSHOT}.new"


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
    early_suspicious: bool = False


class _SubjectRecord(msgspec.Struct, tag="subject"):
    source: str
    subject: str
    base_us: int
    next_index: int
    windows: list[_WindowRecord]


class _End(msgspec.Struct, tag="end"):
    """The last record: without it the file is not whole."""


_Record = _Header | _SourceRecord | _SubjectRecord | _End
_RECORDS: msgspec.msgpack.Decoder[_Record] = msgspec.msgpack.Decoder(_Record)


def adopt_former(directory: Path) -> None:
    """Put the files of a service that had one trace model, which lie in the state directory itself, where they belong
    now; what cannot be told to be of a model is set aside with a warning.

    Raises:
        StateError: such a service still runs, or the files cannot be moved.
    """
    snapshot = directory / SNAPSHOT
    if not snapshot.is_file():
        return
    try:
        lock = DirectoryLock(directory)
    except BlockingIOError:
        raise StateError(f"{directory}: another service keeps its state there: give each its own") from None
    except OSError as error:
        raise StateError(f"{directory}: cannot keep the state of traces there: {error.strerror}") from None
    try:
        target = directory / _name_in(snapshot)
        if (target / SNAPSHOT).exists():
            raise StateError(f"there is a newer one of {target.name}")
        target.mkdir(mode=0o700, exist_ok=True)
        for name in (SNAPSHOT, JOURNAL, f"{JOURNAL}.old"):
            if (directory / name).exists():
                (directory / name).replace(target / name)
        log.info("took over the open traces of an earlier version", directory=str(target))
    except (StateError, OSError) as error:
        snapshot.replace(directory / DAMAGED)
        log.warning(
            "open traces of an earlier version were not read",
            directory=str(directory),
            reason=str(error),
            set_aside=DAMAGED,
        )
    finally:
        lock.close()
        with contextlib.suppress(OSError):
            (directory / "lock").unlink()


def _name_in(snapshot: Path) -> str:
    """The name of the model whose windows a snapshot holds.

    Raises:
        StateError: it does not say.
    """
    with snapshot.open("rb") as file:
        try:
            header = _RECORDS.decode(read_framed(file))
        except (DamageError, msgspec.DecodeError) as error:
            raise StateError("it is damaged") from error
    name = header.checkpoint.rpartition(" ")[0] if isinstance(header, _Header) else ""
    if not _MODEL_NAME.fullmatch(name):
        raise StateError("it is damaged")
    return name


class TraceState:
    """The files of a model in its folder. Captures are not kept: they are played from the beginning."""

    def __init__(self, directory: Path, checkpoint: TracegramCheckpoint) -> None:
        """Raises: StateError, where the directory cannot be written or another service keeps its state there."""
        self._directory = directory
        self.keep_for(checkpoint)
        try:
            for each in (directory.parent, directory):  # both private: files name hosts
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DirectoryLock(directory)
        except BlockingIOError:
            raise StateError(f"{directory}: another service keeps its state there: give each its own") from None
        except FileExistsError:
            raise StateError(f"{directory}: cannot keep the state of traces there: not a directory") from None
        except OSError as error:
            raise StateError(f"{directory}: cannot keep the state of traces there: {error.strerror}") from None
        self._journal = Journal(directory / JOURNAL)

    def keep_for(self, checkpoint: TracegramCheckpoint) -> None:
        """Keep the windows of that checkpoint from the next snapshot on."""
        self._header = _Header(
            STATE_VERSION, f"{checkpoint.name} {checkpoint.version}", checkpoint.trace, checkpoint.network.feature_size
        )
        self._window_us = checkpoint.trace.window_us
        self._size_bytes = size_bytes(checkpoint)

    def load(self, windows: TraceWindows) -> None:
        """Put back what was open, less what was closed since."""
        if not (self._directory / SNAPSHOT).exists():
            return
        try:
            closed = self._closed()
            self._load(windows, closed)
        except (StateError, *WRITE_FAULTS) as error:
            self._set_aside(error)
        name = self._header.checkpoint
        log.info("open traces of the last run", model=name, flows=windows.open_flows, windows=windows.open_windows)

    def _load(self, windows: TraceWindows, closed: dict[SubjectKey, int]) -> None:
        try:
            for record in self._read():
                if isinstance(record, _SourceRecord):
                    windows.restore_source(record.name, SourceClock(record.newest_us, record.seen_at))
                elif isinstance(record, _SubjectRecord):
                    key, subject_windows = self._subject(record, windows)
                    self._restore(windows, key, subject_windows, closed.pop(key, None))
                    if windows.is_full:
                        raise StateError("it holds more than fits: the rest is left out")
        finally:
            known = windows.clocks
            for key, start_us in closed.items():
                if key.source in known:
                    self._restore(windows, key, SubjectWindows(start_us, self._window_us), start_us)

    def _set_aside(self, error: Exception) -> None:
        """Say what is wrong; a damaged snapshot is kept under another name, for whoever wants to look."""
        kept = self._directory / DAMAGED
        if isinstance(error.__cause__, DamageError):
            with contextlib.suppress(
                OSError
            ):  # not every file system can; the warning tells of the damage all the same
                kept.unlink(missing_ok=True)
                kept.hardlink_to(self._directory / SNAPSHOT)
        log.warning(
            "open traces of the last run were not all read",
            directory=str(self._directory),
            reason=str(error) or type(error).__name__,
            set_aside=kept.name if kept.exists() else None,
        )

    def closed(self, key: WindowKey) -> None:
        """Note that a window's final verdict goes out.

        Raises:
            OSError, MemoryError, OverflowError: it could not be noted; the next one is tried again.
        """
        self._journal.append(msgspec.json.encode([key.source, key.subject, key.start_us]))

    async def save(self, windows: TraceWindows) -> None:
        """Write a snapshot beside the last one and put it in its place; between its pieces others may work.

        Raises:
            OSError, MemoryError, OverflowError: it cannot be written; the last one and its journal stay.
        """
        self._journal.rotate()
        staging = self._directory / _STAGING
        try:
            with open_private(staging, os.O_TRUNC) as file:
                for piece in _pieces(self._records(windows)):
                    if await asyncio.to_thread(file.write, piece) != len(piece):
                        raise OSError("cut short")
                await asyncio.to_thread(os.fsync, file.fileno())
            staging.replace(self._directory / SNAPSHOT)
        finally:
            staging.unlink(missing_ok=True)
        self._journal.forget_old()

    def close(self) -> None:
        """Close the journal and let another service have the directory."""
        self._journal.close()
        self._lock.close()

    def _records(self, windows: TraceWindows) -> Iterator[_Record]:
        yield self._header
        for name, clock in list(windows.clocks.items()):
            if not windows.is_capture(name):
                yield _SourceRecord(name, clock.newest_us, clock.seen_at)
        for key in list(windows.subjects):
            subject = windows.subjects.get(key)
            if subject is None or windows.is_capture(key.source):
                continue
            kept = [
                _WindowRecord(
                    index, window.cut, window.early_label, list(window.flows.values()), window.early_suspicious
                )
                for index, window in subject.windows.items()
            ]
            yield _SubjectRecord(key.source, key.subject, subject.base_us, subject.next_index, kept)
        yield _End()

    def _read(self) -> Iterator[_Record]:
        with (self._directory / SNAPSHOT).open("rb") as file:
            try:
                header = _RECORDS.decode(read_framed(file))
                if not isinstance(header, _Header) or header != self._header:
                    raise StateError("it is of another checkpoint, other settings or another version")
                while not isinstance(record := _RECORDS.decode(read_framed(file)), _End):
                    yield record
            except (DamageError, msgspec.DecodeError) as error:
                damage = error if isinstance(error, DamageError) else DamageError("it is damaged")
                raise StateError(str(damage)) from damage

    def _subject(self, record: _SubjectRecord, windows: TraceWindows) -> tuple[SubjectKey, SubjectWindows]:
        if record.source not in windows.clocks:
            raise StateError("a subject of it has no source")
        if any(len(flow.features) != self._size_bytes for window in record.windows for flow in window.flows):
            raise StateError("the features of a flow have another size")
        kept = {
            window.index: Window(
                {flow.uid: flow for flow in window.flows}, window.cut, window.early_label, window.early_suspicious
            )
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

    def _closed(self) -> dict[SubjectKey, int]:
        """The last closed window of each subject of the journal."""
        found: OrderedDict[SubjectKey, int] = OrderedDict()
        damaged = 0
        for line in self._journal.lines():
            try:
                source, subject, start_us = msgspec.json.decode(line or b"", type=tuple[str, str, int])
            except msgspec.DecodeError:  # the last line of a killed service, or of a full disk
                damaged += 1
                continue
            key = SubjectKey(source, subject)
            found[key] = max(start_us, found.pop(key, 0))
            if len(found) > MAX_CLOSED_SUBJECTS:
                found.popitem(last=False)
        if damaged:
            log.warning("lines of the journal of closed traces were damaged", lines=damaged)
        return found


def _pieces(records: Iterator[_Record]) -> Iterator[bytes]:
    """Records with their lengths and checksums, joined to pieces worth a write."""
    piece = bytearray()
    for record in records:
        piece += framed(msgspec.msgpack.encode(record))
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)
