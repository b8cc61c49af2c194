"""The directory of a bulk run, on a disk or in any filesystem of fsspec: a file of flows and one of traces for each
capture, the mark that it is done, what all was made with, and tables of what came of captures.

A file appears whole under its name, or not at all: on a disk it is written beside and renamed, elsewhere put in one
go. The mark comes last. Whoever does a capture again writes files of the same names, so that no row is there twice.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tapline.models.foreign_text import clean
from tapline.service.bulk.bulk_records import BulkError, CaptureAccount, Made, difference
from tapline.service.bulk.bulk_sources import filesystem, is_remote, local_path

MADE = "bulk.json"
FLOWS, TRACES, DONE = "flows", "traces", "done"
CAPTURES_TABLE, ERRORS_TABLE = "captures.parquet", "errors.parquet"
_PARTS = ".parts"
_OBJECT_STORES = {"abfs", "abfss", "az", "gcs", "gs", "oss", "s3", "s3a"}
"""Protocols without directories: who asks for one there gets a bucket, of a name that may be mistyped."""

_ACCOUNT = msgspec.json.Decoder(CaptureAccount)
_CAPTURES = pa.schema(
    [
        ("capture", pa.string()),
        ("file", pa.string()),
        ("size_bytes", pa.int64()),
        ("packets", pa.int64()),
        ("flows", pa.int64()),
        ("classified", pa.int64()),
        ("failed", pa.int64()),
        ("traces", pa.int64()),
        ("warning", pa.string()),
        ("error", pa.string()),
    ]
)
_ERRORS = pa.schema([("capture", pa.string()), ("error", pa.string())])


class BulkStore:
    """The directory `out`, a path or a URL. Used by the process that runs all and by every worker."""

    def __init__(self, out: str) -> None:
        """Raises CaptureError: there is no such filesystem."""
        self.out = out.rstrip("/") if is_remote(out) else os.path.abspath(local_path(out))  # noqa: PTH100
        self._remote: Any = None
        self._root = self.out
        if is_remote(self.out):
            self._remote, self._root = filesystem(self.out)

    def begin(self, made: Made) -> None:
        """Take the directory into use for verdicts that are made so.

        Raises:
            BulkError: it holds what was made otherwise, or something else, or cannot be written.
        """
        content = self._read(MADE)
        if content is None:
            with self.said("make it"):
                self._make_directories()
            self._put(MADE, msgspec.json.encode(made) + b"\n")
            return
        try:
            before = msgspec.json.decode(content, type=Made)
        except msgspec.DecodeError:
            raise BulkError(f"{self.out}: {MADE} there is none of `tapline bulk`: give another --out") from None
        if change := difference(before, made):
            raise BulkError(f"{self.out}: what is there was made otherwise ({change}): give another --out")
        with self.said("make it"):
            self._make_directories()

    def accounts(self) -> dict[str, CaptureAccount]:
        """What came of captures so far, by key.

        Raises:
            BulkError: the directory cannot be read.
        """
        with self.said("read it"):
            if self._remote is None:
                contents = [path.read_bytes() for path in Path(self._root, DONE).glob("*.json")]
            else:
                found = [name for name in self._remote.find(self._path(DONE)) if name.endswith(".json")]
                contents = list(self._remote.cat(found).values()) if found else []
        accounts = map(_account_of, contents)
        return {account.key: account for account in accounts if account is not None}

    def account(self, key: str) -> CaptureAccount | None:
        """What came of one capture, None where nothing has yet."""
        content = self._read(f"{DONE}/{key}.json")
        return _account_of(content) if content is not None else None

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write, which takes its name once the block is left without an error.

        Raises:
            BulkError: it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            if self._remote is None:
                part = Path(self._root, _PARTS, uuid.uuid4().hex)
                with self.said(f"write {name}"):
                    file: IO[bytes] = stack.enter_context(part.open("wb"))
                stack.callback(part.unlink, missing_ok=True)
            else:  # without a name, so that nothing is left of a worker that is killed
                file = stack.enter_context(tempfile.TemporaryFile())
            yield file
            with self.said(f"write {name}"):
                file.flush()
                if self._remote is None:
                    os.fsync(file.fileno())
                    part.replace(self._path(name))
                    _keep_names(Path(self._path(name)).parent)
                else:
                    file.seek(0)  # where /dev/fd is this very descriptor
                    self._remote.put_file(f"/dev/fd/{file.fileno()}", self._path(name))

    def mark(self, account: CaptureAccount) -> None:
        """Say what came of a capture, once its files are there; with an error none are left.

        Raises:
            BulkError: it cannot be written.
        """
        if account.error is not None:
            for folder in (FLOWS, TRACES):
                self._remove(f"{folder}/{account.key}.parquet")
        self._put(f"{DONE}/{account.key}.json", msgspec.json.encode(account) + b"\n")

    def finish(self, accounts: Iterable[CaptureAccount]) -> None:
        """Write the tables of captures and of errors, and take away what killed workers left.

        Raises:
            BulkError: they cannot be written.
        """
        ordered = sorted(accounts, key=lambda account: account.capture)
        rows = [
            {**msgspec.structs.asdict(each), "file": None if each.error else f"{each.key}.parquet"} for each in ordered
        ]
        for name, schema, records in (
            (CAPTURES_TABLE, _CAPTURES, rows),
            (ERRORS_TABLE, _ERRORS, [row for row in rows if row["error"] is not None]),
        ):
            with self.writing(name) as file:
                pq.write_table(pa.Table.from_pylist(records, schema), file, compression="zstd")
        if self._remote is None:
            shutil.rmtree(self._path(_PARTS), ignore_errors=True)

    def _make_directories(self) -> None:
        if self._remote is None:
            for name in (FLOWS, TRACES, DONE, _PARTS):
                Path(self._root, name).mkdir(parents=True, exist_ok=True)
        elif not _OBJECT_STORES.intersection(_protocols(self._remote)):
            for name in (FLOWS, TRACES, DONE):
                self._remote.makedirs(self._path(name), exist_ok=True)

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _read(self, name: str) -> bytes | None:
        with self.said(f"read {name}"), contextlib.suppress(FileNotFoundError):
            if self._remote is None:
                return Path(self._path(name)).read_bytes()
            return bytes(self._remote.cat_file(self._path(name)))
        return None

    def _put(self, name: str, content: bytes) -> None:
        with self.writing(name) as file, self.said(f"write {name}"):
            file.write(content)

    def _remove(self, name: str) -> None:
        with self.said(f"remove {name}"), contextlib.suppress(FileNotFoundError):
            if self._remote is None:
                Path(self._path(name)).unlink()
            else:
                self._remote.rm_file(self._path(name))

    @contextlib.contextmanager
    def said(self, what: str) -> Iterator[None]:
        """What fails inside is an error of the directory; every filesystem has errors of its own."""
        try:
            yield
        except BulkError:
            raise
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
            raise BulkError(f"{self.out}: cannot {what}: {clean(reason or type(error).__name__, 300)}") from None


def _account_of(content: bytes) -> CaptureAccount | None:
    """What a mark says; None where it is no whole one, as of a store that shows a file while it is put."""
    try:
        return _ACCOUNT.decode(content)
    except msgspec.DecodeError:
        return None


def _protocols(remote: Any) -> Iterable[str]:
    return (remote.protocol,) if isinstance(remote.protocol, str) else remote.protocol


def _keep_names(directory: Path) -> None:
    """Have the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
