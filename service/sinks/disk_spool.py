"""What waits on disk for an output that is away: bounded, kept over a restart, and dropped in the order of the queue.

Each kind of record has files of its own, of JSON lines; what of them was sent is noted beside them, so that a restart
sends again no more than was on its way.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from tapline.service.process.files import write_all
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import RECORD_KINDS, OutputError, RecordKind
from tapline.service.sinks.sender import reason_of

PIECES = 16
"""The least number of files that a full spool has: what is dropped at a time is one of them."""

MAX_PIECE_BYTES = 4 << 20
_SCAN_BYTES = 1 << 20
_NAME = re.compile(r"(flows|traces|alerts)-([0-9]{10})\.ndjson")
_POSITION_BYTES = 32
_MAX_NUMBER = 10**9


class SpoolError(Exception):
    """Records could not be written to disk: `rest` of them, of which nothing is there; the message says why."""

    def __init__(self, reason: str, rest: Sequence[Record]) -> None:
        super().__init__(reason)
        self.rest = rest


class _Piece:
    """A file of records: how many and how many bytes there still are to be sent, from `start` on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = 0
        self.size = 0
        self.records = 0


class _Kind:
    """The records of one kind: files in order, the last of which is written."""

    def __init__(self, folder: Path, kind: RecordKind) -> None:
        self.kind = kind
        self.pieces: deque[_Piece] = deque()
        self._folder = folder
        self._number = 0
        self._file: io.FileIO | None = None
        self._position = folder / f"{kind}.sent"
        found = sorted(path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and match[1] == kind)
        sent_of, sent = self._read_position()
        for path in found:
            piece = _Piece(path)
            self._number = _number(path)
            if self._number == sent_of:
                piece.start = sent
            if _scan(piece):
                self.pieces.append(piece)
            else:
                path.unlink()
        self._number = max(self._number, sent_of)  # what is noted of a file that is gone is of no other

    @property
    def records(self) -> int:
        """How many wait."""
        return sum(piece.records for piece in self.pieces)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(piece.size for piece in self.pieces)

    def append(self, data: bytes, records: int, piece_bytes: int) -> None:
        """Write whole lines, all or none of them.

        Raises:
            OSError: they cannot be written.
        """
        if self._file is None or self.pieces[-1].size >= piece_bytes:
            self._begin()
        assert self._file is not None
        piece = self.pieces[-1]
        try:
            write_all(self._file, data)
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(piece.size)
                self._file.seek(piece.size)
            raise
        piece.size += len(data)
        piece.records += records

    def first_lines(self, max_records: int, max_bytes: int) -> list[bytes]:
        """The oldest lines, one at least; a line has its end."""
        piece = self.pieces[0]
        with piece.path.open("rb") as file:
            file.seek(piece.start)
            lines: list[bytes] = []
            size = 0
            for _ in range(min(max_records, piece.records)):
                line = file.readline()
                if lines and size + len(line) > max_bytes:
                    break
                lines.append(line)
                size += len(line)
        return lines

    def sent(self, records: int, size: int) -> None:
        """Forget the oldest records."""
        piece = self.pieces[0]
        piece.start += size
        piece.records -= records
        if not piece.records:
            self.drop_first()
            return
        text = f"{_number(piece.path)} {piece.start}".ljust(_POSITION_BYTES - 1) + "\n"
        self._position.write_bytes(text.encode())

    def drop_first(self) -> int:
        """Delete the oldest file; how many records went with it."""
        piece = self.pieces.popleft()
        if not self.pieces:
            self.close()
        piece.path.unlink(missing_ok=True)
        return piece.records

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self.close()
        piece = _Piece(self._folder / f"{self.kind}-{self._number + 1:010}.ndjson")
        self._file = io.FileIO(piece.path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))
        self._number += 1
        self.pieces.append(piece)

    def _read_position(self) -> tuple[int, int]:
        try:
            number, offset = self._position.read_bytes()[:_POSITION_BYTES].split()
            known = 0 <= int(number) < _MAX_NUMBER and int(offset) >= 0
            return (int(number), int(offset)) if known else (0, 0)
        except (OSError, ValueError):
            return 0, 0


class DiskSpool:
    """Records on disk in `folder`, which one service at a time uses, at most `max_bytes`.

    `records` wait; with those that are sent and not yet deleted they take `used_bytes`.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Take up what an earlier run left; what it was writing when it was killed is no whole record, and is cut off.

        Raises:
            OutputError: the folder cannot be used, or another service has it.
        """
        self.folder = folder
        self._max_bytes = max_bytes
        self._piece_bytes = min(MAX_PIECE_BYTES, max_bytes // PIECES)
        with contextlib.ExitStack() as stack:
            self._kinds = self._open(stack)
            self._lock = stack.pop_all()
        self._measure()

    def _open(self, stack: contextlib.ExitStack) -> dict[RecordKind, _Kind]:
        folder = self.folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return {kind: _Kind(folder, kind) for kind in RECORD_KINDS}
        except BlockingIOError:
            raise OutputError(f"another service uses {folder}: give this one a --data-dir of its own") from None
        except OSError as error:
            raise OutputError(f"the spool {folder} cannot be used: {reason_of(error)}") from None

    def append(self, records: Sequence[Record]) -> Counter[RecordKind]:
        """Keep records; how many were dropped for want of room, by kind.

        Raises:
            SpoolError: some could not be written.
        """
        dropped: Counter[RecordKind] = Counter()
        ranked = [record for kind in reversed(RECORD_KINDS) for record in records if record.kind == kind]
        at = 0
        try:
            for kind, data, count in _chunks(ranked, self._piece_bytes):
                dropped += self._make_room(len(data), kind)
                if self._size() + len(data) > self._max_bytes:
                    dropped[kind] += count
                else:
                    self._kinds[kind].append(data, count, self._piece_bytes)
                at += count
        except OSError as error:
            raise SpoolError(reason_of(error), ranked[at:]) from None
        finally:
            self._measure()
        return dropped

    def first(self, max_records: int, max_bytes: int) -> list[Record]:
        """The next to be sent, of one kind: alerts first, then traces, then flows, the oldest first; empty where
        nothing waits.

        Raises:
            OSError: they cannot be read.
        """
        for kind in reversed(RECORD_KINDS):
            if self._kinds[kind].pieces:
                return [Record(kind, line[:-1]) for line in self._kinds[kind].first_lines(max_records, max_bytes)]
        return []

    def give_up_first(self) -> Counter[RecordKind]:
        """Delete the file of those that are next to be sent, which cannot be read; how many records went with it."""
        lost: Counter[RecordKind] = Counter()
        for kind in reversed(RECORD_KINDS):
            if self._kinds[kind].pieces:
                lost[kind] = self._kinds[kind].pieces[0].records
                with contextlib.suppress(OSError):
                    self._kinds[kind].drop_first()
                break
        self._measure()
        return lost

    def sent(self, records: Sequence[Record]) -> None:
        """Forget these, which are the first ones of their kind.

        Raises:
            OSError: it cannot be noted; after a restart they are sent again.
        """
        if records:
            try:
                self._kinds[records[0].kind].sent(len(records), sum(len(record.line) + 1 for record in records))
            finally:
                self._measure()

    def close(self) -> None:
        """Let another use the folder."""
        for kind in self._kinds.values():
            kind.close()
        self._lock.close()

    def _size(self) -> int:
        return sum([kind.size for kind in self._kinds.values()])

    def _measure(self) -> None:
        self.records = sum([kind.records for kind in self._kinds.values()])
        self.used_bytes = self._size()

    def _make_room(self, size: int, rank: RecordKind) -> Counter[RecordKind]:
        """Delete the oldest records, of the lowest rank first and of none above this one, until so much fits."""
        dropped: Counter[RecordKind] = Counter()
        for kind in RECORD_KINDS[: RECORD_KINDS.index(rank) + 1]:
            while self._size() + size > self._max_bytes and self._kinds[kind].pieces:
                dropped[kind] += self._kinds[kind].drop_first()
        return dropped


def _chunks(records: Sequence[Record], max_bytes: int) -> Iterator[tuple[RecordKind, bytes, int]]:
    """Lines of one kind joined, with their number, at most so large where no line is larger; in order."""
    lines: list[bytes] = []
    size = 0
    for record, after in zip(records, [*records[1:], None], strict=True):
        lines.append(record.line)
        size += len(record.line) + 1
        if after is None or after.kind != record.kind or size + len(after.line) + 1 > max_bytes:
            yield record.kind, b"\n".join([*lines, b""]), len(lines)
            lines, size = [], 0


def _scan(piece: _Piece) -> bool:
    """Count the whole lines of a file from its start on and cut off what follows them; whether there are any."""
    with piece.path.open("r+b") as file:
        file.seek(max(0, piece.start - 1))
        if piece.start and file.read(1) != b"\n":  # no end of a record: what was noted is of another file
            piece.start = 0
        file.seek(piece.start)
        end = piece.start
        at = piece.start
        while data := file.read(_SCAN_BYTES):
            piece.records += data.count(b"\n")
            if b"\n" in data:
                end = at + data.rindex(b"\n") + 1
            at += len(data)
        file.truncate(end)
    piece.size = end
    return piece.records > 0


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[2])
