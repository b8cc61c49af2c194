"""Where a checkpoint may come from or go to: a repository of a Hub (`hf:org/name@revision`), a folder, or a `file:` URL
of one. Opens files there; which are read, how much of them, and what they hold is `pull`'s business."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

from tapline.installation import install_command
from tapline.models.checkpoint_files import HUB_PREFIX

_REPOSITORY = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,95}/[0-9A-Za-z][0-9A-Za-z._-]{0,95}")
_REVISION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._/-]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
MAX_REASON_CHARS = 300


class HubError(RuntimeError):
    """A checkpoint cannot be pulled or pushed; the message says from or to where, why, and what to do."""


@dataclass(frozen=True)
class HubRepository:
    """A repository of a Hub; `revision` is a branch, a tag or a commit, None for its main branch."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


def place_of(text: str) -> HubRepository | Path:
    """The repository or folder that a text names.

    Raises:
        HubError: it is neither.
    """
    if text.startswith(HUB_PREFIX):
        name, at, revision = text.removeprefix(HUB_PREFIX).partition("@")
        if not _REPOSITORY.fullmatch(name) or (at and not _is_revision(revision)):
            raise HubError(f"{text}: expected hf:ORGANISATION/NAME or hf:ORGANISATION/NAME@REVISION")
        return HubRepository(name, revision or None)
    if text.startswith("file:"):
        url = urlsplit(text)
        if url.netloc not in ("", "localhost") or url.query or url.fragment or not url.path:
            raise HubError(f"{text}: expected file:///FOLDER, a folder of this machine")
        return Path(unquote(url.path))
    if "://" in text:
        raise HubError(f"{text}: expected hf:ORGANISATION/NAME, a folder, or file:///FOLDER")
    return Path(text)


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text


class Opened(Protocol):
    """A place to read from."""

    revision: str | None

    def open(self, name: str) -> BinaryIO:
        """A file of it, by its bare name.

        Raises:
            FileNotFoundError: there is none of this name.
            HubError: it cannot be read.
        """
        ...


class Folder:
    """A folder to read from; links in it are not followed."""

    revision: str | None = None

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise HubError(f"{path}: no such folder")
        self._path = path

    def open(self, name: str) -> BinaryIO:
        """As `Opened.open`."""
        path = self._path / name
        try:
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise HubError(f"{path}: not a file to read ({error.strerror}); links are not followed") from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise HubError(f"{path}: expected a plain file")
        return cast(BinaryIO, file)


class Hub:
    """A repository of a Hub to read from, at the commit that its revision is now. The endpoint and the token are those
    of `huggingface_hub`: HF_ENDPOINT, HF_TOKEN, or what `hf auth login` stored."""

    def __init__(self, repository: HubRepository) -> None:
        hub = hub_library()
        self._repository = repository
        with explained(repository):
            found = hub.HfApi().model_info(repository.name, revision=repository.revision)
        if not isinstance(found.sha, str) or not _COMMIT.fullmatch(found.sha):
            raise HubError(f"{repository}: the Hub names no commit of it")
        self.revision: str | None = found.sha
        self._names = {sibling.rfilename for sibling in found.siblings or []}
        self._files = hub.HfFileSystem(skip_instance_cache=True)

    def open(self, name: str) -> BinaryIO:
        """As `Opened.open`; a stream of one request, of which nothing is stored."""
        if name not in self._names:
            raise FileNotFoundError(name)
        with explained(self._repository):
            path = f"{self._repository.name}/{name}"
            return cast(BinaryIO, self._files.open(path, "rb", revision=self.revision, block_size=0))


def hub_library() -> Any:
    """The module `huggingface_hub`.

    Raises:
        HubError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(f"a Hub needs huggingface_hub: {install_command('hub')}") from None
    return huggingface_hub


@contextmanager
def explained(what: object) -> Iterator[None]:
    """Turn what `huggingface_hub` and the HTTP library below it raise into a `HubError`, but for a missing file."""
    try:
        yield
    except (HubError, FileNotFoundError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:MAX_REASON_CHARS] or type(error).__name__
        raise HubError(f"{what}: {reason}") from error


def open_place(place: HubRepository | Path) -> Opened:
    """A place, opened to read from.

    Raises:
        HubError: it is not there, or does not answer.
    """
    return Folder(place) if isinstance(place, Path) else Hub(place)
