"""The model repository on disk: `<repository>/<name>/<version>/`. Finds checkpoints; engines load them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tapline.installation import PACKAGE
from tapline.models.checkpoint import MANIFEST, CheckpointError

ZOO = (PACKAGE / "models" / "zoo").resolve()
"""The checkpoints that ship with tapline."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,31}")


class UnknownModelError(LookupError):
    """The repository holds no such model or version."""


@dataclass(frozen=True)
class Repository:
    """Where models are looked up by name. `pinned` names directories outside `root`: of versions, or one checkpoint."""

    root: Path = ZOO
    pinned: dict[str, Path] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every model that has a version."""
        folders = [path.name for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []
        return sorted({name for name in [*folders, *self.pinned] if _NAME.fullmatch(name) and self.versions(name)})

    def versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first; they order by their numbers, so that 10 comes after 9."""
        directory = self.pinned.get(name, self.root / name)
        return [path.name for path in _versions_below(directory)] or (
            [directory.name] if (directory / MANIFEST).is_file() else []
        )

    def find(self, name: str, version: str | None = None) -> Path:
        """The directory of a version, the newest where none is given.

        Raises:
            UnknownModelError: there is none; the message says what there is.
        """
        if not _NAME.fullmatch(name) or (version is not None and not _VERSION.fullmatch(version)):
            raise UnknownModelError("not the name of a model, or not a version")
        versions = self.versions(name)
        if not versions:
            raise UnknownModelError(f"no model {name} here: there is {', '.join(self.names()) or 'none'}")
        if version is not None and version not in versions:
            raise UnknownModelError(f"no version {version} of {name}: there is {', '.join(versions)}")
        directory = self.pinned.get(name, self.root / name)
        if (directory / MANIFEST).is_file():
            return directory
        return directory / (version or versions[-1])


def newest_version(directory: Path) -> Path:
    """The newest version below `<repository>/<name>`, or the directory itself where it holds no versions."""
    versions = _versions_below(directory)
    return versions[-1] if versions else directory


def versions_directory(directory: Path, name: str) -> Path:
    """Where the other versions of a model are: above `directory`, where that is one version of it in a repository."""
    above = directory.resolve().parent
    return above if (directory / MANIFEST).is_file() and above.name == name else directory


def shipped_checkpoint(name: str) -> Path:
    """The newest version of a checkpoint that ships with tapline.

    Raises:
        CheckpointError: it is not there: the installation is damaged.
    """
    directory = newest_version(ZOO / name)
    if not (directory / MANIFEST).is_file():
        raise CheckpointError(f"{directory}: the checkpoint that ships is not there: install tapline again")
    return directory


def _versions_below(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("*") if (path / MANIFEST).is_file() and not path.name.startswith(".")]
    return sorted(found, key=_version_key)


def _version_key(path: Path) -> tuple[list[int], str]:
    return [int(part) for part in path.name.split(".") if part.isdigit()], path.name
