"""From origins and labels to a feature directory: many processes, each writing whole shards; resumable."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tapline.models.checkpoint import file_sha256
from tapline.models.flow import FLOW_FORMAT_VERSION, HeadsKind
from tapline.training.data.corrections import START_TOLERANCE_US
from tapline.training.data.label_table import JoinAccount
from tapline.training.data.labels import Labels
from tapline.training.data.origins import ExtractError, Origin, OriginReader
from tapline.training.data.parquet import Sample, write_table
from tapline.training.data.samples import MANIFEST, Corrected, Manifest, Shard, write_manifest

SHARD_ORIGINS = 64
SHARD_BYTES = 64 << 20
"""A shard takes consecutive origins until it has so many, or so many bytes of them."""
MAX_TOLD_WARNINGS = 5
"""An error names so many captures that could not be read."""
NOT_THERE = "correction of a flow that is not there"
"""Why a correction is left out."""
_PLAN = "plan.json"
_SAFE_PATH = "PYTHONSAFEPATH"


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract: where labels come from, which packet heads are kept, how many processes read."""

    labels: Labels = field(default_factory=Labels)
    heads: HeadsKind = "none"
    processes: int = 2


class ShardReport(msgspec.Struct):
    """A finished shard, its flows by label, what was left out of it by reason, its captures with a warning, its
    corrected flows, and what the table of labels said."""

    shard: Shard
    labels: dict[str, int]
    left_out: dict[str, int]
    warnings: dict[str, str]
    corrected: list[Corrected]
    joined: JoinAccount = msgspec.field(default_factory=JoinAccount)


@dataclass(frozen=True)
class Outline:
    """What `extract` would read: how much, how many shards of it are there from an interrupted call, and how many
    captures have each label that is known before reading, None for those without."""

    captures: int
    size_bytes: int
    shards: int
    finished: int
    labels: Counter[str | None]


def outline(origins: Sequence[Origin], directory: Path, settings: ExtractSettings) -> Outline:
    """Look at the origins without reading them, and at `directory`.

    Raises:
        ExtractError: `directory` holds something else than features.
    """
    _refuse_other_files(directory)
    staging, groups = _staging(directory), list(_group(origins))
    goes_on = _is_of(staging, _fingerprint(origins, settings))
    return Outline(
        captures=len(origins),
        size_bytes=sum(path.stat().st_size for origin in origins for path in _files(origin)),
        shards=len(groups),
        finished=sum(_finished(staging, number) is not None for number in range(len(groups))) if goes_on else 0,
        labels=Counter(settings.labels.expected(origin) for origin in origins),
    )


def extract(
    origins: Sequence[Origin],
    directory: Path,
    settings: ExtractSettings | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Write the flows with payload of all origins to a feature directory, whole or not at all.

    A flow without a label is kept: pre-training reads it. Finished shards wait in a hidden folder beside `directory`;
    the same call after an interruption continues there. `progress` is told how many origins were read.

    Raises:
        ExtractError: no origin has a flow with payload, a correction is of two flows, `directory` holds something else
            than features, the disk is full, or a reading process was killed.
    """
    settings = settings or ExtractSettings()
    _refuse_other_files(directory)
    staging = _staging(directory)
    groups = list(_group(origins))
    _prepare(staging, _fingerprint(origins, settings))
    reports = _read_groups(groups, staging, settings, progress)
    manifest = _manifest(origins, reports, settings)
    if twice := _of_two_flows(manifest.corrected):
        shutil.rmtree(staging)
        raise ExtractError(
            f"the correction of uid {twice} is of two flows here: give start_us in the corrections too, as tapline "
            "writes it"
        )
    if not manifest.samples:
        shutil.rmtree(staging)
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(manifest.left_out.items()))
        raise ExtractError(
            f"{len(origins)} captures hold no flow with payload: {reasons or 'they are empty'}{_why(manifest.warnings)}"
        )
    write_manifest(staging, manifest)
    _move(staging, directory, {MANIFEST, *(shard.name for shard in manifest.shards)})
    return manifest


def _of_two_flows(corrected: Sequence[Corrected]) -> str | None:
    """The uid of a correction of flows that began at different times, None without any."""
    starts: dict[str, int] = {}
    for flow in corrected:
        if abs(starts.setdefault(flow.by, flow.start_us) - flow.start_us) > START_TOLERANCE_US:
            return flow.by
    return None


def _why(warnings: dict[str, str]) -> str:
    """What was wrong with the first captures, as part of a sentence."""
    told = [f"; {name}: {warning}" for name, warning in list(warnings.items())[:MAX_TOLD_WARNINGS]]
    more = len(warnings) - len(told)
    return "".join(told) + (f"; and {more} more" if more else "")


def _move(staging: Path, directory: Path, names: set[str]) -> None:
    """Put a whole feature directory in its place, without what else there is, as the half of a killed process."""
    for path in staging.iterdir():
        if path.name not in names:
            path.unlink()
    old = directory.parent / f".{directory.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.replace(old)
    staging.replace(directory)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_other_files(directory: Path) -> None:
    if directory.exists() and not (directory / MANIFEST).is_file() and any(directory.iterdir()):
        raise ExtractError(f"{directory}: exists and holds no features: give another directory")


def _staging(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.partial"


def _is_of(staging: Path, fingerprint: str) -> bool:
    """Whether the finished shards of an interrupted call are of these inputs and settings."""
    plan = staging / _PLAN
    return plan.is_file() and plan.read_text() == fingerprint


def _group(origins: Sequence[Origin]) -> Iterator[list[Origin]]:
    group: list[Origin] = []
    size_bytes = 0
    for origin in origins:
        group.append(origin)
        size_bytes += sum(path.stat().st_size for path in _files(origin))
        if len(group) == SHARD_ORIGINS or size_bytes >= SHARD_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _files(origin: Origin) -> list[Path]:
    if not origin.path.is_dir():
        return [origin.path]
    return sorted(path for path in origin.path.iterdir() if path.is_file() and ".log" in path.name)


def _fingerprint(origins: Sequence[Origin], settings: ExtractSettings) -> str:
    """What the shards depend on: inputs by name, size and time, and the settings."""
    digest = hashlib.sha256(f"{FLOW_FORMAT_VERSION} {settings.heads} {settings.labels.fingerprint()}".encode())
    for origin in origins:
        digest.update(f"\n{origin.corpus}\0{origin.capture}".encode())
        for path in _files(origin):
            status = path.stat()
            digest.update(f"\0{path.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _prepare(staging: Path, fingerprint: str) -> None:
    """Keep the finished shards of an interrupted call with the same inputs and settings; begin anew otherwise."""
    if staging.exists() and not _is_of(staging, fingerprint):
        shutil.rmtree(staging)
    staging.mkdir(parents=True, exist_ok=True)
    (staging / _PLAN).write_text(fingerprint)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Processes that are started anew meanwhile import nothing of where they are started."""
    before = os.environ.get(_SAFE_PATH)
    os.environ.setdefault(_SAFE_PATH, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]


def _read_groups(
    groups: Sequence[list[Origin]], staging: Path, settings: ExtractSettings, progress: Callable[[int], None]
) -> list[ShardReport]:
    reports: dict[int, ShardReport] = {}
    for number, group in enumerate(groups):
        if (report := _finished(staging, number)) is not None:
            reports[number] = report
            progress(len(group))
    try:
        with (
            _safe_path(),
            ProcessPoolExecutor(settings.processes, initializer=_take_settings, initargs=(settings,)) as pool,
        ):
            waiting = {
                pool.submit(write_group, group, staging, number): number
                for number, group in enumerate(groups)
                if number not in reports
            }
            for done in as_completed(waiting):
                number = waiting[done]
                reports[number] = done.result()
                progress(len(groups[number]))
    except OSError as error:  # what cannot be read is counted, so this is a shard that cannot be written
        raise ExtractError(
            f"{staging}: cannot write the features ({os.strerror(error.errno) if error.errno else error}); "
            f"{len(reports)} of {len(groups)} shards are done: make room and run the same command again to go on"
        ) from None
    except BrokenProcessPool:
        raise ExtractError(
            f"a process that reads captures was killed (out of memory?); {len(reports)} of {len(groups)} shards are "
            "done: run the same command again to go on, with fewer --processes"
        ) from None
    return [reports[number] for number in range(len(groups))]


_worker_settings = ExtractSettings()


def _take_settings(settings: ExtractSettings) -> None:
    """Give a worker process its settings once: a table of labels is large."""
    global _worker_settings
    _worker_settings = settings


def _report_path(staging: Path, number: int) -> Path:
    return staging / f"samples-{number:05d}.json"


def _finished(staging: Path, number: int) -> ShardReport | None:
    try:
        report = msgspec.json.decode(_report_path(staging, number).read_bytes(), type=ShardReport)
        whole = not report.shard.name or file_sha256(staging / report.shard.name) == report.shard.sha256
    except (OSError, msgspec.DecodeError):
        return None
    return report if whole else None


def write_group(group: list[Origin], staging: Path, number: int) -> ShardReport:
    """Read the origins of one shard and write it; its report is the last file, so that a shard counts only whole."""
    name = f"samples-{number:05d}.parquet"
    path = staging / f"{name}.{os.getpid()}"
    left_out: Counter[str] = Counter()
    report = ShardReport(Shard(name, 0, 0, ""), {}, {}, {}, [])
    try:
        report.shard.samples = write_table(path, _samples(group, report, left_out))
        if report.shard.samples:
            report.shard.size_bytes, report.shard.sha256 = path.stat().st_size, file_sha256(path)
            path.replace(staging / name)
        else:
            report.shard.name = ""
        report.left_out = dict(left_out)
        path.write_bytes(msgspec.json.encode(report))
        path.replace(_report_path(staging, number))
    finally:
        path.unlink(missing_ok=True)
    return report


def _samples(group: list[Origin], report: ShardReport, left_out: Counter[str]) -> Iterator[Sample]:
    settings = _worker_settings
    for origin in group:
        reader = OriginReader(origin, settings.heads)
        for flow in reader:
            label = settings.labels.label_of(origin, flow, report.joined)
            if label is not None:
                report.labels[label] = report.labels.get(label, 0) + 1
            if (correction := settings.labels.corrections.of(flow)) is not None:
                report.corrected.append(Corrected(flow.uid, flow.start_us, label, correction.uid))
            yield Sample(origin.corpus, origin.capture, label, flow)
        left_out.update(reader.left_out)
        if reader.warning:
            report.warnings[f"{origin.corpus}/{origin.capture}"] = reader.warning


def _manifest(origins: Sequence[Origin], reports: Sequence[ShardReport], settings: ExtractSettings) -> Manifest:
    left_out: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    warnings: dict[str, str] = {}
    for report in reports:
        left_out.update(report.left_out)
        labels.update(report.labels)
        warnings |= report.warnings
    corrected = [flow for report in reports for flow in report.corrected]
    used = {flow.by for flow in corrected}
    missing = [correction.uid for correction in settings.labels.corrections if correction.uid not in used]
    if missing:
        left_out[NOT_THERE] += len(missing)
    joined = _joined(reports)
    if (table := settings.labels.table) is not None:
        for reason, count in table.left_over(joined).items():
            left_out[reason] += count
    return Manifest(
        shards=[report.shard for report in reports if report.shard.samples],
        captures=len(origins),
        samples=sum(report.shard.samples for report in reports),
        labelled=labels.total(),
        labels=dict(sorted(labels.items())),
        left_out=dict(left_out),
        warnings=warnings,
        settings={"heads": settings.heads, "labels": settings.labels.describe()},
        corrected=corrected,
        corrections_not_there=missing,
        clock_hint=joined.clock_hint(),
    )


def _joined(reports: Sequence[ShardReport]) -> JoinAccount:
    whole = JoinAccount()
    for report in reports:
        whole.add(report.joined)
    return whole
