"""Flows from Zeek's logs in the published layout: `conn.log`, `ps.log` and `raw.log` of one capture, plain or gzip.

How flows become tokens belongs to `models.encode`; captures belong to the other sources.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from models.flow import MAX_CONTENT_BYTES, MAX_PAYLOAD_LENGTHS, Flow

_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_TRANSPORTS = {"tcp", "udp", "icmp"}
_MAX_LINE_CHARS = 1 << 22


class LogError(ValueError):
    """A log directory cannot be read; the message says which file, where and why."""


class _Pattern(msgspec.Struct):
    """A row of `ps.log`."""

    up: int
    down: int
    payload_lengths: list[int]


class _Content(msgspec.Struct):
    """A row of `raw.log`."""

    orig_bytes: bytes
    resp_bytes: bytes


def is_log_directory(path: Path) -> bool:
    """Whether `path` holds a connection log in the published layout."""
    return any((path / f"conn.log{suffix}").is_file() for suffix in ("", ".gz"))


def read_log_directory(path: Path) -> Iterator[Flow]:
    """The connections of one log directory, joined on `uid`, in the order of `conn.log`.

    A connection without a row in `ps.log` or `raw.log` has no lengths or no content. The rows of those two are held in
    memory until the connection log is read through: one directory is one capture.

    Raises:
        LogError: no connection log, a field is missing, or a value is not what Zeek writes; the message names the line.
    """
    patterns = {row["uid"]: _pattern(row) for row in _rows(path, "ps", ("uid", "up", "down", "ps"), optional=True)}
    contents = {row["uid"]: _content(row) for row in _rows(path, "raw", ("uid", "fwd_raw", "bwd_raw"), optional=True)}
    fields = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto")
    for row in _rows(path, "conn", fields, optional=False):
        pattern = patterns.pop(row["uid"], None) or _Pattern(0, 0, [])
        content = contents.pop(row["uid"], None) or _Content(b"", b"")
        yield _flow(row, pattern, content)


class _Row(dict[str, str]):
    """Fields of one line by name; knows where it stands."""

    def __init__(self, fields: list[str], values: list[str], where: str) -> None:
        super().__init__(zip(fields, values, strict=True))
        self.where = where

    def text(self, name: str) -> str:
        """The field, "" when it is unset, empty or not logged."""
        value = self.get(name, "-")
        return "" if value in {"-", "(empty)"} else _ESCAPE.sub(lambda match: chr(int(match[1], 16)), value)

    def count(self, name: str) -> int:
        """The field as a number, 0 when it is unset or not logged."""
        value = self.text(name) or "0"
        if not value.isdecimal():
            raise LogError(f"{self.where}: expected a count in {name}")
        return int(value)

    def microseconds(self, name: str) -> int:
        """The field, seconds with decimals, as whole microseconds; 0 when it is unset."""
        seconds, _, decimals = (self.text(name) or "0").partition(".")
        if not (seconds + decimals).isdecimal():
            raise LogError(f"{self.where}: expected seconds in {name}")
        return int(seconds) * 1_000_000 + int(decimals[:6].ljust(6, "0"))


def _rows(directory: Path, name: str, needed: tuple[str, ...], optional: bool) -> Iterator[_Row]:
    for path in (directory / f"{name}.log", directory / f"{name}.log.gz"):
        if path.is_file():
            yield from _rows_of_file(path, needed)
            return
    if not optional:
        raise LogError(f"{directory}: no {name}.log or {name}.log.gz in it")


def _rows_of_file(path: Path, needed: tuple[str, ...]) -> Iterator[_Row]:
    fields: list[str] = []
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while raw := file.readline(_MAX_LINE_CHARS):
                number += 1
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if line.startswith("#fields"):
                    fields = line.split("\t")[1:]
                    if missing := [name for name in needed if name not in fields]:
                        raise LogError(f"{path}: no field {missing[0]}: not a log in the published layout")
                elif line and not line.startswith("#"):
                    values = line.split("\t")
                    if len(values) != len(fields):
                        raise LogError(f"{path} line {number}: {len(values)} values for {len(fields)} fields")
                    yield _Row(fields, values, f"{path} line {number}")
    except (OSError, EOFError, zlib.error):
        raise LogError(f"{path}: unreadable or damaged after line {number}") from None


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
    proto = row["proto"]
    return Flow(
        uid=row["uid"],
        start_us=row.microseconds("ts"),
        duration_us=row.microseconds("duration"),
        orig_h=row["id.orig_h"],
        orig_p=row.count("id.orig_p"),
        resp_h=row["id.resp_h"],
        resp_p=row.count("id.resp_p"),
        proto=proto if proto in _TRANSPORTS else str(row.count("ip_proto")),
        up=pattern.up,
        down=pattern.down,
        payload_lengths=pattern.payload_lengths,
        orig_bytes=content.orig_bytes,
        resp_bytes=content.resp_bytes,
        orig_pkts=row.count("orig_pkts"),
        resp_pkts=row.count("resp_pkts"),
        orig_ip_bytes=row.count("orig_ip_bytes"),
        resp_ip_bytes=row.count("resp_ip_bytes"),
        service=row.text("service"),
        conn_state=row.text("conn_state"),
    )
