"""From captures or log directories, and a label table, to a feature directory. The sources read packets."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from models.flow import Flow
from service.sources.capture import CaptureError, CaptureReader, ReadOptions
from service.sources.logs import LogError, is_log_directory, read_log_directory
from training.labels import LabelTable
from training.samples import MANIFEST, Manifest, Sample, write_manifest, write_shard

SHARD_SAMPLES = 20_000


class ExtractError(ValueError):
    """Nothing could be extracted; the message says from what."""


@dataclass(frozen=True)
class Origin:
    """One capture file or log directory. The corpus is the name of the folder it was found under."""

    corpus: str
    capture: str
    path: Path


@dataclass
class Extracted:
    """The flows with payload of one origin, and what was left out."""

    origin: Origin
    flows: list[Flow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    warning: str = ""


def find_origins(roots: list[Path]) -> list[Origin]:
    """Every capture file and log directory under `roots` (or a root itself), in order of path.

    Raises:
        ExtractError: a root does not exist or holds nothing.
    """
    found: list[Origin] = []
    for root in roots:
        if not root.exists():
            raise ExtractError(f"{root}: no such file or directory")
        paths = [root] if root.is_file() or is_log_directory(root) else sorted(_below(root))
        if not paths:
            raise ExtractError(f"{root}: no capture and no conn.log in it")
        found += [
            Origin(root.name, path.relative_to(root).as_posix() if path != root else root.name, path) for path in paths
        ]
    return found


def _below(root: Path) -> Iterator[Path]:
    """Log directories, and files beside none."""
    logs = [path for path in root.rglob("*") if path.is_dir() and is_log_directory(path)]
    yield from logs
    if not logs:
        yield from (path for path in root.rglob("*") if path.is_file() and path.suffix not in {".csv", ".md", ".txt"})


def read_origin(origin: Origin) -> Extracted:
    """Read one origin; an unreadable one yields what came before the fault and a warning."""
    result = Extracted(origin)
    try:
        if origin.path.is_dir():
            _take(result, read_log_directory(origin.path))
        else:
            reader = CaptureReader(origin.path, ReadOptions(heads="none"))
            _take(result, reader)
            result.warning = reader.warning or ""
    except (CaptureError, LogError) as error:
        result.left_out["capture unreadable"] += 1
        result.warning = str(error)
    return result


def _take(result: Extracted, flows: Iterator[Flow] | CaptureReader) -> None:
    for flow in flows:
        if flow.payload_lengths:
            result.flows.append(flow)
        else:
            result.left_out["flow without payload"] += 1


def extract(
    origins: list[Origin],
    directory: Path,
    labels: LabelTable | None,
    processes: int,
    progress: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write the flows with payload of all origins to a feature directory, whole or not at all.

    A flow that the label table does not name is kept without a label: pre-training reads it.

    Raises:
        ExtractError: no origin has a flow with payload, or `directory` holds something else than features.
    """
    if directory.exists() and not (directory / MANIFEST).is_file() and any(directory.iterdir()):
        raise ExtractError(f"{directory}: exists and holds no features: give another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    manifest = Manifest([], len(origins), 0, 0, {}, {}, {})
    left_out: Counter[str] = Counter()
    try:
        with ProcessPoolExecutor(processes) as pool:
            results = pool.map(read_origin, origins, chunksize=4)
            samples = _samples(results, labels, manifest, left_out, progress)
            for number in itertools.count():
                head = list(itertools.islice(samples, SHARD_SAMPLES))
                if not head:
                    break
                manifest.shards.append(write_shard(staging / f"samples-{number:05d}.ndjson.zst", head))
        if not manifest.samples:
            raise ExtractError(f"{len(origins)} captures hold no flow with payload: {dict(left_out)}")
        manifest.left_out = dict(left_out)
        write_manifest(staging, manifest)
        staging.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        staging.replace(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _samples(
    results: Iterator[Extracted],
    labels: LabelTable | None,
    manifest: Manifest,
    left_out: Counter[str],
    progress: Callable[[], None],
) -> Iterator[Sample]:
    for result in results:
        origin = result.origin
        left_out.update(result.left_out)
        if result.warning:
            manifest.warnings[f"{origin.corpus}/{origin.capture}"] = result.warning
        find = partial(labels.label_of, Path(origin.capture).name) if labels else lambda _: None
        for flow in result.flows:
            label = find(flow)
            manifest.samples += 1
            manifest.labelled += label is not None
            yield Sample(origin.corpus, origin.capture, label, flow)
        progress()
