"""Pushing a checkpoint: the checkpoint directory is the repository, its card with the header that a Hub reads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from tapline.models.card_header import with_header
from tapline.models.checkpoint import CARD, MANIFEST, MAX_MANIFEST_BYTES, AnyCheckpoint, read_any_checkpoint
from tapline.models.checkpoint_files import CheckpointError, read_inside
from tapline.service.hub.places import HubError, HubRepository, explained, hub_library, place_of
from tapline.service.hub.pull import FILES


def push(directory: Path, target: str, licence: str | None = None, *, private: bool = False) -> str:
    """Push a checkpoint to a repository of a Hub, which is made where there is none, or into a folder; gives the
    commit, or the folder. A version that was there is replaced.

    Raises:
        CheckpointError: `directory` holds no checkpoint that is whole.
        HubError: the target does not take it, or a folder holds something else.
        OSError: it cannot be read or written.
    """
    checkpoint, place = read_any_checkpoint(directory), place_of(target)
    if strange := sorted(checkpoint.files.keys() - FILES):
        raise HubError(f"{directory}: {strange[0]} is no file of a checkpoint: export it again")
    with tempfile.TemporaryDirectory(prefix="tapline-push-") as folder:
        staging = Path(folder)
        for name in (MANIFEST, *checkpoint.files):
            shutil.copyfile(directory / name, staging / name)
        (staging / CARD).write_text(_card(directory, checkpoint, licence), encoding="utf-8")
        if isinstance(place, Path):
            return _into_folder(staging, place, checkpoint.name)
        return _to_hub(staging, place, checkpoint, private=private)


def _card(directory: Path, checkpoint: AnyCheckpoint, licence: str | None) -> str:
    try:
        text = (directory / CARD).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = f"# {checkpoint.name} {checkpoint.version}\n"
    return with_header(text, checkpoint, licence)


class _Named(msgspec.Struct):
    """What is asked of a manifest that is replaced."""

    name: str


def _into_folder(staging: Path, folder: Path, name: str) -> str:
    """Put the files into a folder, each whole, the manifest last; files of a checkpoint that this one lacks go."""
    if folder.exists() and any(folder.iterdir()):
        try:
            there = msgspec.json.decode(read_inside(folder / MANIFEST, MAX_MANIFEST_BYTES), type=_Named).name
        except (CheckpointError, msgspec.DecodeError):
            raise HubError(f"{folder}: holds something else than a checkpoint: give another folder") from None
        if there != name:
            raise HubError(f"{folder}: holds the model {there!r}, and this one is {name!r}: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in staging.iterdir())
    for name in sorted(names, key=lambda name: name == MANIFEST):
        part = folder / f".{name}.part"
        shutil.copyfile(staging / name, part)
        part.replace(folder / name)
    for name in FILES - set(names):
        (folder / name).unlink(missing_ok=True)
    return os.fspath(folder)


def _to_hub(staging: Path, place: HubRepository, checkpoint: AnyCheckpoint, *, private: bool) -> str:
    api = hub_library().HfApi()
    gone = sorted(FILES - checkpoint.files.keys())
    with explained(place):
        api.create_repo(place.name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=place.name,
            folder_path=staging,
            revision=place.revision,
            commit_message=f"{checkpoint.name} {checkpoint.version}",
            delete_patterns=gone,
        )
    return str(commit.oid)
