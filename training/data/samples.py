"""The feature directory: Parquet shards of samples and a manifest with their checksums. Columns belong to `parquet`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from tapline.models.checkpoint import file_sha256
from tapline.models.flow import FLOW_FORMAT_VERSION
from tapline.training.data.one_flow import Identity, TwoLabelsError, plan_rows
from tapline.training.data.parquet import Sample, read_identities, read_table
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import write_json

_Row = TypeVar("_Row")

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


class Corrected(msgspec.Struct, frozen=True):
    """A flow whose label is a correction's, None where the label map leaves it out; `by` is the correction's uid."""

    uid: str
    start_us: int
    label: str | None
    by: str


class Manifest(msgspec.Struct):
    """What a feature directory holds: its shards, what was left out by reason, warnings by capture, flows by label,
    corrected flows, and the uids of corrections of flows that it does not hold; `clock_hint`: what is said of rows of
    labels with the endpoints of flows at other times."""

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
    corrected: list[Corrected] = []
    corrections_not_there: list[str] = []
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
    return _rows(directory, read_table)


def _rows(directory: Path, read: Callable[[Path], Iterator[_Row]]) -> Iterator[_Row]:
    for shard in read_manifest(directory).shards:
        path = directory / Path(shard.name).name
        try:
            if file_sha256(path) != shard.sha256:
                raise SampleError(f"{path}: damaged: its SHA-256 is not the one in the manifest: extract again")
            yield from read(path)
        except OSError as error:
            raise SampleError(f"{path}: unreadable ({error.strerror})") from None
        except (pa.ArrowException, KeyError) as error:
            raise SampleError(f"{path}: not a shard of samples: {error}") from None


def samples_of(features: Iterable[Path]) -> Iterator[Sample]:
    """The samples of several feature directories, every flow once and under one label, as `one_flow` says.

    Raises:
        SampleError: as `read_samples`, or two corrections of a flow differ.
    """
    directories = list(features)
    if len(directories) == 1 and not read_manifest(directories[0]).corrected:
        return read_samples(directories[0])
    return _merged(directories)


def _merged(directories: Sequence[Path]) -> Iterator[Sample]:
    try:
        plan = plan_rows([_identities(path) for path in directories])
    except TwoLabelsError as error:
        raise SampleError(_two_labels(directories, error)) from None
    rows = ((place, sample) for place, path in enumerate(directories) for sample in read_samples(path))
    for row, (place, sample) in enumerate(rows):
        if row not in plan.left_out:
            sample.label = plan.label_of.get(row, sample.label)
            capture = sample.corpus, sample.capture
            sample.corpus, sample.capture = plan.capture_of.get((place, capture), capture)
            yield sample


def _identities(directory: Path) -> Iterator[Identity]:
    """What says of each row of a feature directory which flow it is."""
    corrected = {(flow.uid, flow.start_us) for flow in read_manifest(directory).corrected}
    for uid, identity in _rows(directory, read_identities):
        is_corrected = (uid, identity.start_us) in corrected
        yield replace(identity, corrected=True) if is_corrected else identity


def _two_labels(directories: Sequence[Path], error: TwoLabelsError) -> str:
    """The sentence for two corrections that differ; reads the directories up to the second."""
    rows = ((path, sample) for path in directories for sample in read_samples(path))
    (path, first), (other, second) = (
        row for place, row in enumerate(islice(rows, max(error.rows) + 1)) if place in error.rows
    )
    return (
        f"{path} and {other}: the same flow is corrected to {first.label!r} (uid {first.flow.uid}) and to "
        f"{second.label!r} (uid {second.flow.uid}): extract one of them again with corrections that agree"
    )


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
