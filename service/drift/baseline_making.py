"""Makes the baseline of a checkpoint: from captures, by the path that serves, or from what a service remembers of its
own last days."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.baseline import Baseline, principal_axes, read_baseline
from tapline.models.checkpoint import BASELINE, CARD, Checkpoint, read_any_checkpoint, read_file
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.verdict import Verdict
from tapline.service.drift.counts import Counts, total
from tapline.service.drift.drift_state import ModelHours
from tapline.service.drift.model_drift import MIN_VERDICTS
from tapline.service.engines.loading import load_engine
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.inference.trace_loading import load_beside
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import open_input
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.scorer import TraceScorer, Watch
from tapline.service.traces.trace_verdict import ScoreJob, TraceVerdict

BATCH_FLOWS = 512
MAX_VECTORS = 20_000
"""Embeddings from which axes are made, a sample of all."""

Traffic = Literal["training", "site"]
Problem = Callable[[str, str], None]
"""Is told of an input that could not be read, and why."""


class BaselineError(ValueError):
    """No baseline can be made; the message says why."""


class Sample:
    """What a model said of some traffic."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.vectors: list[NDArray[np.float32]] = []
        self._seen = 0
        self._random = random.Random(0)

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self.counts.add(verdict)

    def add_vector(self, vector: NDArray[np.float32]) -> None:
        """Take an embedding, or logits; of very many a random sample is kept (reservoir sampling)."""
        self._seen += 1
        if len(self.vectors) < MAX_VECTORS:
            self.vectors.append(vector.copy())
        elif (place := self._random.randrange(self._seen)) < MAX_VECTORS:
            self.vectors[place] = vector.copy()

    def baseline(self, traffic: Traffic, measured_on: str) -> Baseline:
        """The baseline that it makes.

        Raises:
            BaselineError: there are too few verdicts.
        """
        axes = principal_axes(np.array(self.vectors)) if self.vectors else []
        made = _baseline(self.counts, traffic, measured_on)
        return msgspec.structs.replace(made, axes=axes)


def measure(directory: Path, captures: Iterable[str], problem: Problem) -> Sample:
    """What the model of a checkpoint says of captures; a trace model reads the flows that the default model classifies.

    Raises:
        CheckpointError, EngineError: it cannot be run.
    """
    checkpoint = read_any_checkpoint(directory)
    sample = Sample()
    if isinstance(checkpoint, Checkpoint):
        classifier = Classifier(load_engine("onnx", directory))
        scorers: list[TraceScorer] = []
    else:
        engine = load_beside("onnx", directory)
        classifier = Classifier(load_engine("onnx", shipped_checkpoint("flow-protocols")), trace_engines=[engine])
        scorers = [_Heard(engine, sample)]
    for name in captures:
        try:
            for found in _read(name, classifier, scorers):
                if isinstance(found, TraceVerdict):
                    sample.add(found.verdict)
                elif not scorers:
                    sample.add(found[0])
                    sample.add_vector(found[1])
        except CaptureError as error:
            problem(name, str(error))
    return sample


def remembered(directory: Path, kept: ModelHours) -> Baseline:
    """The baseline that a service's own last days make, at most eight of them.

    Embeddings are counted along the axes of the baseline that the checkpoint has, where they were.

    Raises:
        BaselineError: they are of another version, or too little.
        CheckpointError: the checkpoint cannot be read.
    """
    checkpoint = read_any_checkpoint(directory)
    if (kept.model, kept.version) != (checkpoint.name, checkpoint.version):
        raise BaselineError(
            f"the service remembers {kept.model} {kept.version}, the checkpoint is {checkpoint.name} "
            f"{checkpoint.version}: give the one that serves"
        )
    counts = total(kept.hours)
    made = _baseline(counts, "site", f"live traffic of {len(kept.hours)} hours")
    before = read_baseline(directory, checkpoint)
    if before is None or checkpoint.files[BASELINE].sha256 != kept.axes or counts.embeddings < MIN_VERDICTS:
        return made
    moved = [msgspec.structs.replace(axis, counts=bins) for axis, bins in zip(before.axes, counts.axes, strict=True)]
    return msgspec.structs.replace(made, axes=moved)


def put(baseline: Baseline, checkpoint_directory: Path, to: Path) -> None:
    """Write a checkpoint with another baseline, whole or not at all; `to` may be where it was.

    Raises:
        CheckpointError: it cannot be read, or `to` holds something else.
    """
    checkpoint = read_any_checkpoint(checkpoint_directory)
    files = {name: read_file(checkpoint_directory, checkpoint, name) for name in checkpoint.files if name != BASELINE}
    files[BASELINE] = msgspec.json.format(msgspec.json.encode(baseline), indent=0) + b"\n"
    card = checkpoint_directory / CARD
    if card.is_file():
        files[CARD] = card.read_bytes()

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    write_checkpoint(to, checkpoint, write)


def _baseline(counts: Counts, traffic: Traffic, measured_on: str) -> Baseline:
    if counts.verdicts < MIN_VERDICTS:
        raise BaselineError(f"{counts.verdicts} verdicts, expected {MIN_VERDICTS} at least: give more captures")
    labels = dict(sorted(counts.labels.items()))
    return Baseline(traffic, measured_on, counts.verdicts, counts.unknown, labels, counts.confidence, [])


def _read(
    name: str, classifier: Classifier, scorers: Sequence[TraceScorer]
) -> Iterator[tuple[Verdict, NDArray[np.float32]] | TraceVerdict]:
    """The verdicts on the flows of a capture with their embeddings, and those on its traces."""
    traces = CaptureTraces(scorers, name)
    flows = iter(open_input(name, "auto", ReadOptions(heads=classifier.heads)))
    while batch := list(islice(flows, BATCH_FLOWS)):
        accepted = [flow for flow in batch if classifier.accepts(flow)]
        for flow, outcome in zip(accepted, classifier.classify_each(accepted), strict=True):
            if outcome is None:
                continue
            traces.add(flow, outcome)
            if outcome.verdict is not None and outcome.embedding is not None:
                yield outcome.verdict, outcome.embedding
    traces.finish()
    while found := traces.ready():
        yield from found


class _Heard(TraceScorer):
    """A scorer whose logits are sampled."""

    def __init__(self, engine: TraceEngine, sample: Sample) -> None:
        super().__init__(engine)
        self._sample = sample

    def score(self, jobs: Sequence[ScoreJob], watch: Watch | None = None) -> list[TraceVerdict | None]:
        """As of any; whoever watches else is not told."""
        return super().score(jobs, self._hear)

    def _hear(self, jobs: Sequence[ScoreJob], logits: NDArray[np.float32]) -> None:
        for vector in logits:
            self._sample.add_vector(vector)
