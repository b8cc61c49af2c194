"""Samples: flows with their capture and label, and the feature directory they are kept in (NDJSON shards, manifest)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from models.checkpoint import file_sha256
from models.flow import FLOW_FORMAT_VERSION, Flow, FlowError, FlowLine, flow_to_line, line_to_flow

MANIFEST = "manifest.json"


class SampleError(ValueError):
    """A feature directory cannot be used; the message says which file and why."""


class Sample(msgspec.Struct, gc=False):
    """One flow to learn from. `capture` groups flows that resemble each other; `label` is None when it has none."""

    corpus: str
    capture: str
    label: str | None
    flow: Flow


class SampleLine(msgspec.Struct, gc=False):
    """A sample in JSON."""

    corpus: str
    capture: str
    label: str | None
    flow: FlowLine


class Shard(msgspec.Struct):
    """One file of samples."""

    name: str
    samples: int
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct):
    """What a feature directory holds: its shards, what was left out by reason, and captures with a warning."""

    shards: list[Shard]
    captures: int
    samples: int
    labelled: int
    left_out: dict[str, int]
    warnings: dict[str, str]
    settings: dict[str, Any]
    flow_format_version: int = FLOW_FORMAT_VERSION


def write_shard(path: Path, samples: Iterable[Sample]) -> Shard:
    """Write one shard, zstd-compressed NDJSON."""
    count = 0
    with path.open("wb") as file, zstandard.ZstdCompressor(level=6).stream_writer(file) as stream:
        for sample in samples:
            line = SampleLine(sample.corpus, sample.capture, sample.label, flow_to_line(sample.flow))
            stream.write(msgspec.json.encode(line) + b"\n")
            count += 1
    return Shard(path.name, count, path.stat().st_size, file_sha256(path))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of a feature directory."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (directory / MANIFEST).write_bytes(text + b"\n")


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a feature directory.

    Raises:
        SampleError: it is missing, damaged, or of another version of the flow record.
    """
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise SampleError(
            f"{directory}: no readable {MANIFEST} ({error.strerror}): expected extracted features"
        ) from None
    except msgspec.DecodeError as error:
        raise SampleError(f"{directory / MANIFEST}: not a manifest of features: {error}") from None
    if manifest.flow_format_version != FLOW_FORMAT_VERSION:
        raise SampleError(
            f"{directory}: flow format {manifest.flow_format_version}, this tapline reads {FLOW_FORMAT_VERSION}: "
            "extract again"
        )
    return manifest


def read_samples(directory: Path) -> Iterator[Sample]:
    """The samples of a feature directory, shard after shard, each checked before it is read.

    Raises:
        SampleError: a shard is missing, damaged, or holds something else than samples.
    """
    decoder = msgspec.json.Decoder(SampleLine)
    for shard in read_manifest(directory).shards:
        path = directory / Path(shard.name).name
        try:
            if file_sha256(path) != shard.sha256:
                raise SampleError(f"{path}: damaged: its SHA-256 is not the one in the manifest")
            with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
                for text in io.BufferedReader(stream):
                    line = decoder.decode(text)
                    yield Sample(line.corpus, line.capture, line.label, line_to_flow(line.flow))
        except OSError as error:
            raise SampleError(f"{path}: unreadable ({error.strerror})") from None
        except (zstandard.ZstdError, msgspec.DecodeError, FlowError) as error:
            raise SampleError(f"{path}: not a shard of samples: {error}") from None
