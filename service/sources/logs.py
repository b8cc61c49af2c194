"""Flows from Zeek's logs in the published layout: `conn.log`, `ps.log` and `raw.log` of one capture or one sensor, tab
separated or JSON, plain, gzip or zstd, rotated or not.

How flows become tokens belongs to `models.encode`; captures belong to the other sources.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import msgspec
import zstandard

from tapline.models.flow import MAX_CONTENT_BYTES, MAX_PAYLOAD_LENGTHS, Flow, FlowError, flow_of

_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_TRANSPORTS = {"tcp", "udp", "icmp"}
_MAX_LINE_CHARS = 1 << 22
_MAX_DIGITS = 19
_EXPONENT = re.compile(r"\d(\.\d{1,18})?e[+-]\d{1,2}")
"""How Zeek writes round numbers of many digits, a time in 2038 as 2.147483647e+09."""
_UNSET = frozenset({"-", "(empty)"})
_ROTATED = r"(?:[._-]\d[\w:.+-]*)?"
"""What rotation puts into a name, by Zeek and its tools before `.log`, by logrotate after it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_EPOCH_SECONDS = 10**11
"""A time beyond it is in milliseconds (`JSON::TS_MILLIS`)."""
_OPTIONAL = frozenset({"ps", "fwd_raw", "bwd_raw"})
"""Fields that JSON leaves out where they are empty."""
DAMAGED = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading a damaged log raises."""

_Value = TypeVar("_Value")


class LogError(ValueError):
    """A log directory cannot be read; the message says which file, where and why."""


class LogFieldError(LogError):
    """A log has not the fields that it should have: no line of it can be read."""


class _Pattern(msgspec.Struct):
    """A row of `ps.log`."""

    up: int
    down: int
    payload_lengths: list[int]


class _Content(msgspec.Struct):
    """A row of `raw.log`."""

    orig_bytes: bytes
    resp_bytes: bytes


def is_log_of(path: Path, name: str) -> bool:
    """Whether a file is named as Zeek's log `name`, as it is written or after it was rotated and compressed."""
    return re.fullmatch(rf"{name}{_ROTATED}\.log{_ROTATED}(?:\.gz|\.zst)?", path.name) is not None


def open_log(path: Path) -> BinaryIO:
    """The bytes of a log, decompressed by its ending; damage raises while reading."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(cast(io.RawIOBase, zstandard.open(path, "rb")))
    return path.open("rb")


def is_log_directory(path: Path) -> bool:
    """Whether `path` holds a connection log in the published layout."""
    return path.is_dir() and any(is_log_of(file, "conn") for file in path.iterdir())


class LogDirectory:
    """Iterates once over the connections of one log directory, joined on `uid`, in the order of `conn.log`.

    A connection without a row in `ps.log` or `raw.log` has no lengths or no content. The rows of those two are held in
    memory until the connection log is read through. A line that is not what Zeek writes costs that line, a damaged file
    what comes after the damage: `left_out` counts both, `warning` names the first.

    Raises:
        LogError: no connection log, a field is missing, or nothing could be read; the message names the place.
    """

    def __init__(self, path: Path) -> None:
        self.left_out: Counter[str] = Counter()
        self.warning = ""
        self._path = path

    def __iter__(self) -> Iterator[Flow]:
        patterns = {row["uid"]: value for row, value in self._values("ps", ("uid", "up", "down", "ps"), _pattern)}
        contents = {row["uid"]: value for row, value in self._values("raw", ("uid", "fwd_raw", "bwd_raw"), _content)}
        files = self._files("conn")
        if not files:
            raise LogError(f"{self._path}: no conn.log in it")
        flows = 0
        for row in self._rows(files, ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto")):
            pattern = patterns.pop(row["uid"], None) or _Pattern(0, 0, [])
            content = contents.pop(row["uid"], None) or _Content(b"", b"")
            try:
                flow = _flow(row, pattern, content)
            except LogError as error:
                self._leave_out("log line that is no connection", str(error))
                continue
            flows += 1
            yield flow
        if self.warning and not flows:
            raise LogError(self.warning)

    def _leave_out(self, reason: str, warning: str) -> None:
        self.left_out[reason] += 1
        self.warning = self.warning or warning

    def _files(self, name: str) -> list[Path]:
        """The files of a log in the order of their names; of one that is there plain and compressed, the plain one."""
        found = {path.name.removesuffix(".gz").removesuffix(".zst"): path for path in self._sorted(name)}
        return [found[key] for key in sorted(found)]

    def _sorted(self, name: str) -> list[Path]:
        return sorted((path for path in self._path.iterdir() if is_log_of(path, name)), reverse=True)

    def _values(
        self, name: str, needed: tuple[str, ...], value_of: Callable[[_Row], _Value]
    ) -> Iterator[tuple[_Row, _Value]]:
        for row in self._rows(self._files(name), needed):
            try:
                yield row, value_of(row)
            except LogError as error:
                self._leave_out("log line that cannot be read", str(error))

    def _rows(self, files: list[Path], needed: tuple[str, ...]) -> Iterator[_Row]:
        for path in files:
            number = 0
            layout = _Layout(path, needed)
            try:
                with open_log(path) as file:
                    while raw := file.readline(_MAX_LINE_CHARS):
                        number += 1
                        try:
                            row = layout.row(raw, number)
                        except LogFieldError:
                            raise
                        except LogError as error:
                            self._leave_out("log line that cannot be read", str(error))
                            continue
                        if row is not None:
                            yield row
            except DAMAGED:
                self._leave_out("damaged log", f"{path}: unreadable or damaged after line {number}")


class _Layout:
    """How the lines of one file are to be read: JSON, or columns as its header says."""

    def __init__(self, path: Path, needed: tuple[str, ...]) -> None:
        self._path = path
        self._needed = needed
        self._separator = "\t"
        self._fields: list[str] = []
        self._unset: set[str] = set()

    def row(self, raw: bytes, number: int) -> _Row | None:
        """The row of a line, None for a header's.

        Raises:
            LogError: it is none, or the layout has no such field.
        """
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace").rstrip("\r\n")
        where = f"{self._path} line {number}"
        if line.startswith("{"):
            return self._json_row(line, where)
        if line.startswith("#"):
            self._take_header(line)
            return None
        if not line:
            return None
        values = line.split(self._separator)
        if len(values) != len(self._fields):
            raise LogError(f"{where}: {len(values)} values for {len(self._fields)} fields")
        if self._unset:
            values = ["-" if value in self._unset else value for value in values]
        return _Row(self._fields, values, where)

    def _json_row(self, line: str, where: str) -> _Row:
        try:
            record = msgspec.json.decode(line, type=dict[str, object])
        except (msgspec.DecodeError, RecursionError):
            raise LogError(f"{where}: not JSON") from None
        nested = record.pop("id", None)
        if isinstance(nested, dict):
            record |= {f"id.{name}": value for name, value in nested.items()}
        texts = {name: _json_text(value) for name, value in record.items() if value is not None}
        if missing := [name for name in self._needed if name not in texts and name not in _OPTIONAL]:
            raise LogError(f"{where}: no field {missing[0]}: not a log in the published layout")
        return _Row(list(texts), list(texts.values()), where)

    def _take_header(self, line: str) -> None:
        if line.startswith("#separator "):
            self._separator = _unescape(line.removeprefix("#separator "))
            return
        name, *values = line.split(self._separator)
        if name in ("#unset_field", "#empty_field") and values:
            self._unset |= {values[0]} - _UNSET
        elif name == "#fields":
            self._fields = values
            if missing := [name for name in self._needed if name not in values]:
                raise LogFieldError(f"{self._path}: no field {missing[0]}: not a log in the published layout")


def _json_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


class _Row(dict[str, str]):
    """Fields of one line by name; knows where it stands."""

    def __init__(self, fields: list[str], values: list[str], where: str) -> None:
        super().__init__(zip(fields, values, strict=True))
        self.where = where

    def text(self, name: str) -> str:
        """The field, "" when it is unset, empty or not logged."""
        value = self.get(name, "-")
        return "" if value in _UNSET else _unescape(value)

    def count(self, name: str) -> int:
        """The field as a number, 0 when it is unset or not logged."""
        value = self.text(name) or "0"
        if not value.isdecimal() or len(value) > _MAX_DIGITS:
            raise LogError(f"{self.where}: expected a count in {name}")
        return int(value)

    def microseconds(self, name: str) -> int:
        """The field, a time as Zeek's writers put it or seconds with decimals, in microseconds; 0 when it is unset."""
        text = self.text(name) or "0"
        if _EXPONENT.fullmatch(text):
            text = f"{Decimal(text):f}"
        seconds, _, decimals = text.partition(".")
        if (seconds + decimals).isdecimal() and len(seconds) <= _MAX_DIGITS:
            if not decimals and int(seconds) > _LATEST_EPOCH_SECONDS:
                return int(seconds) * 1_000
            return int(seconds) * 1_000_000 + int(decimals[:6].ljust(6, "0"))
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise LogError(f"{self.where}: expected seconds or an ISO time in {name}") from None
        return (time.replace(tzinfo=time.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


def _pattern(row: _Row) -> _Pattern:
    """Expand the run-length code `length:count,...`, no further than the models read."""
    lengths: list[int] = []
    for run in row.text("ps").split(",") if row.text("ps") else ():
        length, _, count = run.partition(":")
        try:
            lengths += [int(length)] * min(int(count), MAX_PAYLOAD_LENGTHS - len(lengths))
        except ValueError:
            raise LogError(f"{row.where}: expected length:count in ps") from None
    return _Pattern(row.count("up"), row.count("down"), lengths)


def _content(row: _Row) -> _Content:
    try:
        forward, backward = (bytes.fromhex(row.text(name))[:MAX_CONTENT_BYTES] for name in ("fwd_raw", "bwd_raw"))
    except ValueError:
        raise LogError(f"{row.where}: expected hex in fwd_raw and bwd_raw") from None
    return _Content(forward, backward)


def _flow(row: _Row, pattern: _Pattern, content: _Content) -> Flow:
    proto = row["proto"].lower()
    fields = {
        "uid": row["uid"],
        "start_us": row.microseconds("ts"),
        "duration_us": row.microseconds("duration"),
        "orig_h": row["id.orig_h"],
        "orig_p": row.count("id.orig_p"),
        "resp_h": row["id.resp_h"],
        "resp_p": row.count("id.resp_p"),
        "proto": proto if proto in _TRANSPORTS else str(row.count("ip_proto")),
        "up": pattern.up,
        "down": pattern.down,
        "payload_lengths": pattern.payload_lengths,
        "orig_bytes": content.orig_bytes,
        "resp_bytes": content.resp_bytes,
        "orig_pkts": row.count("orig_pkts"),
        "resp_pkts": row.count("resp_pkts"),
        "orig_ip_bytes": row.count("orig_ip_bytes"),
        "resp_ip_bytes": row.count("resp_ip_bytes"),
        "service": row.text("service"),
        "conn_state": row.text("conn_state"),
    }
    try:
        return flow_of(fields)
    except FlowError as error:
        raise LogError(f"{row.where}: {error}") from None
