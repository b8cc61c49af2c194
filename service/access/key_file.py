"""The file of keys: read with its permissions checked, read again when it changes, written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tapline.service.access.keys import AccessKey, KeyRing, KeysError, read_line
from tapline.service.log_lines import log

MAX_FILE_BYTES = 1 << 18
LOOK_SECONDS = 1.0
"""How often at most it is looked whether the file has changed."""

_Stamp = tuple[int, int, int, int] | None


class KeyFile:
    """The keys of a file as it is now.

    Where the file changes and a line of it is wrong, the other lines count; where it cannot be read any more, or others
    may write it, no key of it does: what was revoked never comes back by a mistake.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """
        Raises:
            KeysError: the file, or a line of it, cannot be used.
        """
        self.path = path
        self._clock = clock
        text, self._stamp = _read(path)
        self._ring, problems = parse(text)
        if problems:
            raise KeysError(f"{path}: {problems[0]}")
        if stat.S_IMODE(self._stamp[3] if self._stamp else 0) & stat.S_IROTH:
            log.warning("others may read the hashes of keys", file=str(path), hint=f"chmod o-r {path}")
        self._looked = clock()

    def ring(self) -> KeyRing:
        """The keys."""
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if _stamp(self.path) != self._stamp:
                self._read_again()
        return self._ring

    def _read_again(self) -> None:
        try:
            text, self._stamp = _read(self.path)
        except KeysError as error:
            removed = sorted(key.name for key in self._ring)
            self._stamp, self._ring = _stamp(self.path), KeyRing()
            log.error("no key of the file counts", problem=str(error), removed=removed)
            return
        before = {key.name: key for key in self._ring}
        self._ring, problems = parse(text)
        now = {key.name: key for key in self._ring}
        for problem in problems:
            log.error("a line of keys does not count", file=str(self.path), problem=problem)
        log.info(
            "keys were read again", file=str(self.path), keys=len(self._ring), added=sorted(now.keys() - before.keys()),
            removed=sorted(before.keys() - now.keys()),
            changed=sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
        )  # fmt: skip


def parse(text: str) -> tuple[KeyRing, list[str]]:
    """The keys of a file's text, and what is wrong with its lines, by their numbers; of two alike the first counts."""
    keys: list[AccessKey] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = read_line(line)
            KeyRing([*keys, key])
        except KeysError as error:
            problems.append(f"line {number}: {error}")
        else:
            keys.append(key)
    return KeyRing(keys), problems


def _read(path: Path) -> tuple[str, _Stamp]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeysError(f"{path}: expected a file of keys")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise KeysError(f"{path}: others may write it, and so let themselves in: chmod go-w {path}")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise KeysError(f"{path}: cannot be read: {reason}: make it by `tapline keys add`") from None
    if len(data) > MAX_FILE_BYTES:
        raise KeysError(f"{path}: expected a file of at most {MAX_FILE_BYTES >> 10} KiB")
    try:
        return data.decode(), _stamp_of(found)
    except UnicodeDecodeError:
        raise KeysError(f"{path}: expected UTF-8") from None


def _stamp(path: Path) -> _Stamp:
    try:
        return _stamp_of(path.stat())
    except OSError:
        return None


def _stamp_of(found: os.stat_result) -> _Stamp:
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def add_key(path: Path, key: AccessKey) -> None:
    """Put a key into a file, which is made, for this user alone, where there is none.

    Raises:
        KeysError: the file cannot be used, or has a key of that name.
    """
    with _changing(path) as lines:
        if any(found.name == key.name for found in parse("\n".join(lines))[0]):
            raise KeysError(f"{path}: has a key named {key.name}: remove it first, or choose another name")
        lines.append(key.line())


def remove_key(path: Path, name: str) -> None:
    """Take a key out of a file.

    Raises:
        KeysError: the file cannot be used, or has no such key.
    """
    with _changing(path, must_exist=True) as lines:
        kept = [line for line in lines if line.split()[:1] != [name]]
        if len(kept) == len(lines):
            raise KeysError(f"{path}: has no key of that name")
        lines[:] = kept


def keys_of(path: Path) -> KeyRing:
    """The keys of a file.

    Raises:
        KeysError: the file, or a line of it, cannot be used.
    """
    ring, problems = parse(_read(path)[0])
    if problems:
        raise KeysError(f"{path}: {problems[0]}")
    return ring


@contextlib.contextmanager
def _changing(path: Path, *, must_exist: bool = False) -> Iterator[list[str]]:
    """The lines of a file, which are written when the block ends; another who changes it waits."""
    path = path.resolve()  # a link stays one
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(_opened(path.parent))
            fcntl.flock(folder, fcntl.LOCK_EX)
            before = path.stat() if must_exist or path.exists() else None
            lines = _read(path)[0].splitlines() if before else []
            yield lines
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                stack.callback(Path(file.name).unlink, missing_ok=True)
                file.write("".join(f"{line}\n" for line in lines).encode())
                if before is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(file.fileno(), before.st_uid, before.st_gid)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(path)
    except OSError as error:
        raise KeysError(f"{path}: cannot be written: {(error.strerror or type(error).__name__).lower()}") from None


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
