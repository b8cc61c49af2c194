"""The feature directory: Parquet shards of samples and a manifest with their checksums. Columns belong to `parquet`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from tapline.models.checkpoint import file_sha256
from tapline.models.flow import FLOW_FORMAT_VERSION
from tapline.training.data.parquet import Sample, read_table
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import write_json

MANIFEST = "manifest.json"
FEATURES_FORMAT_VERSION = 2
"""Version of a feature directory; 1 was NDJSON."""


class SampleError(ValueError):
    """A feature directory cannot be used; the message says which file and why."""


class Shard(msgspec.Struct):
    """One file of samples."""

    name: str
    samples: int
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct):
    """What a feature directory holds: its shards, what was left out by reason, warnings by capture, flows by label;
    `clock_hint`: what is said of rows of labels with the endpoints of flows at other times."""

    shards: list[Shard]
    captures: int
    samples: int
    labelled: int
    left_out: dict[str, int]
    warnings: dict[str, str]
    settings: dict[str, Any]
    flow_format_version: int = FLOW_FORMAT_VERSION
    format_version: int = 1
    labels: dict[str, int] = {}
    clock_hint: str = ""


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of a feature directory."""
    manifest.format_version = FEATURES_FORMAT_VERSION
    write_json(directory / MANIFEST, manifest)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a feature directory.

    Raises:
        SampleError: it is missing, damaged, or of another version.
    """
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise SampleError(
            f"{directory}: no readable {MANIFEST} ({error.strerror}): expected extracted features"
        ) from None
    except msgspec.DecodeError as error:
        raise SampleError(f"{directory / MANIFEST}: not a manifest of features: {error}") from None
    for what, got, expected in (
        ("flow format", manifest.flow_format_version, FLOW_FORMAT_VERSION),
        ("features format", manifest.format_version, FEATURES_FORMAT_VERSION),
    ):
        if got != expected:
            raise SampleError(f"{directory}: {what} {got}, this tapline reads {expected}: extract again")
    return manifest


def read_samples(directory: Path) -> Iterator[Sample]:
    """The samples of a feature directory, shard after shard, each checked before it is read.

    Raises:
        SampleError: a shard is missing, damaged, or holds something else than samples.
    """
    for shard in read_manifest(directory).shards:
        path = directory / Path(shard.name).name
        try:
            if file_sha256(path) != shard.sha256:
                raise SampleError(f"{path}: damaged: its SHA-256 is not the one in the manifest: extract again")
            yield from read_table(path)
        except OSError as error:
            raise SampleError(f"{path}: unreadable ({error.strerror})") from None
        except (pa.ArrowException, KeyError) as error:
            raise SampleError(f"{path}: not a shard of samples: {error}") from None


def samples_of(features: Iterable[Path]) -> Iterator[Sample]:
    """The samples of several feature directories.

    Raises:
        SampleError: as `read_samples`.
    """
    return (sample for path in features for sample in read_samples(path))


def features_of(features: Iterable[Path]) -> dict[str, str]:
    """Feature directories by name, each with the hash of its manifest, which holds the hashes of its shards.

    Raises:
        TrainingError: two have the same name.
    """
    hashes: dict[str, str] = {}
    for path in features:
        read_manifest(path)
        name = path.resolve().name
        if name in hashes:
            raise TrainingError(f"{path}: two feature directories of this name: rename one")
        hashes[name] = file_sha256(path / MANIFEST)
    return hashes
