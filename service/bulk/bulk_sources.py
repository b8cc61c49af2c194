"""From what a user names to captures: files, directories, patterns, and URLs of any filesystem that fsspec knows."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

import fsspec

from tapline.service.bulk.bulk_records import BulkCapture, one_line
from tapline.service.python.input_run import shown_name
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import (
    FlowInput,
    ReaderName,
    inputs_of,
    is_capture_name,
    open_input,
    open_stream,
    unreadable,
)

READ_AHEAD_BYTES = 8 << 20
"""What is asked of a remote filesystem at a time; a capture is read once, from its start to its end."""

_LOCAL = ("file://", "local://")
_CHANGED = ("etag", "ETag", "mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""What filesystems call that which is another once a file is, the best first."""

_SIGNATURES = {
    "access_token", "sig", "signature", "token", "x-amz-credential", "x-amz-security-token", "x-amz-signature",
    "x-goog-credential", "x-goog-signature",
}  # fmt: skip
"""Parameters of URLs that open an object to whoever has them: of S3, Google's and Azure's stores, and of others."""


def find_captures(sources: Iterable[str]) -> list[BulkCapture]:
    """The captures that sources name, each once, in their order.

    Raises:
        CaptureError: one names none, or its filesystem cannot be asked.
    """
    found: dict[str, BulkCapture] = {}
    for source in sources:
        captures = list(_of_url(source) if is_remote(source) else _of_path(local_path(source)))
        if not captures:
            raise CaptureError(f"{source}: no capture there")
        for capture in captures:
            found.setdefault(capture.path, capture)
    return list(found.values())


def is_remote(name: str) -> bool:
    """Whether a name is a URL of another filesystem than this machine's."""
    return "://" in name and not name.startswith(_LOCAL)


def local_path(name: str) -> str:
    """The path on this machine that a name means, which may be a URL `file://`."""
    return next((name.removeprefix(scheme) for scheme in _LOCAL if name.startswith(scheme)), name)


def filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and the path in it.

    Raises:
        CaptureError: what reads it is not installed, there is no such protocol, or the URL has a password or a
            signature in it.
    """
    try:
        secret = next(filter(None, map(_secret, url.split("::"))), None)  # as of `zip://a.pcap::s3://bucket/day.zip`
    except ValueError as error:
        raise CaptureError(f"expected a URL: {one_line(error)}") from None
    if secret:
        raise CaptureError(
            f"{url.partition('://')[0]}://…: a {secret} in the URL would be in every row: give credentials where the "
            "package of its filesystem looks for them, or in fsspec's configuration"
        )
    try:
        found, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # what it says names the package that reads it, or the protocols
        raise CaptureError(f"{url}: {one_line(error)}") from None
    return found, path


def _secret(url: str) -> str | None:
    """What of a URL nobody else may know, in a word."""
    parts = urlsplit(url)
    if parts.password is not None:
        return "password"
    return "signature" if _SIGNATURES & {name.lower() for name, _ in parse_qsl(parts.query)} else None


def open_capture(path: str, reader: ReaderName, options: ReadOptions) -> tuple[FlowInput, BinaryIO | None]:
    """The flows of a capture, and the stream that is to be closed after them, where there is one.

    Raises:
        CaptureError: it cannot be opened, or is none.
    """
    if not is_remote(path):
        return open_input(path, reader, options), None
    found, inside = filesystem(path)
    try:
        raw = found.open(inside, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
    except Exception as error:  # every filesystem has errors of its own
        raise CaptureError(f"cannot read it: {one_line(error)}") from None
    stream = io.BufferedReader(raw, 1 << 20)
    try:
        return open_stream(stream, reader, options), stream
    except BaseException:
        stream.close()
        raise


def _of_path(source: str) -> Iterator[BulkCapture]:
    names: list[str] = [source]
    if glob.has_magic(source) and not os.path.lexists(source):
        names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if source == "-":
        raise CaptureError("-: standard input is no archive: give files, directories or URLs")
    for name in inputs_of(names):
        try:
            status = Path(name).stat()
        except OSError as error:
            raise CaptureError(f"{name}: {unreadable(name, error)}") from None
        path = os.path.abspath(name)  # noqa: PTH100 - Path.absolute keeps `..`
        yield BulkCapture(path, shown_name(name), status.st_size, str(status.st_mtime_ns))


def _of_url(url: str) -> Iterator[BulkCapture]:
    """Those of a URL; below a directory what is called a capture, for every file would have to be opened otherwise."""
    found, path = filesystem(url)
    try:
        if glob.has_magic(path):
            infos = found.glob(path, detail=True)
        elif found.isdir(path):
            below = found.find(path, detail=True)
            infos = {name: info for name, info in below.items() if is_capture_name(name)}
        else:
            infos = {path: found.info(path)}
    except Exception as error:  # every filesystem has errors of its own
        raise CaptureError(f"{url}: cannot read it: {one_line(error)}") from None
    for name, info in sorted(infos.items()):
        if info.get("type") != "directory":
            full = str(found.unstrip_protocol(name))
            changed = next((str(info[field]) for field in _CHANGED if info.get(field) is not None), "")
            yield BulkCapture(full, full, int(info.get("size") or 0), changed)
