"""Tries a checkpoint out in a process of its own, which may be killed: loads it, runs it, looks at what it gives.

Started by `service.inference.trial`; the verdict is one JSON object on standard output.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import CheckpointError, checkpoint_kind, read_checkpoint, read_trace_checkpoint
from tapline.models.encode import Mm4flowFeatures
from tapline.models.trace_context import trace_context
from tapline.service.engines.engine import EngineError, EngineName, Precision
from tapline.service.engines.loading import load_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.service.engines.warm_flows import LONG_FLOW, SHORT_FLOW, every_token
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.trace_loading import load_beside

MOST_THREADS = 4
_ENGINE_MODULES = {"onnx": "tapline.service.engines.onnx_session", "torch": "tapline.service.engines.torch_common"}

SPARE_MEMORY_BYTES = 1 << 30
MEMORY_PER_FILE_BYTE = 8
"""What loading and running may take beside the libraries: so much, and so much for each byte of the files."""


ORPHAN_SECONDS = 5.0
"""So much later it ends by itself, where nobody is left to kill it."""


class TrialOptions(msgspec.Struct, frozen=True):
    """What is tried, in JSON the only argument. Who started the process kills it after `seconds`."""

    directory: str
    engine: EngineName
    precision: Precision
    seconds: float


class TrialResult(msgspec.Struct, frozen=True):
    """Why the checkpoint cannot be served, None where it can."""

    error: str | None = None


def main() -> None:
    """Try, say how it went, end."""
    options = msgspec.json.decode(sys.argv[1], type=TrialOptions)
    signal.setitimer(signal.ITIMER_REAL, options.seconds + ORPHAN_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        try_out(options)
        result = TrialResult()
    except CheckpointError as error:
        result = TrialResult(str(error))
    except EngineError as error:
        result = TrialResult(f"{options.directory}: {error}")
    except MemoryError:
        result = TrialResult(f"{options.directory}: needs more memory than its size explains: export it again")
    except Exception as error:
        result = TrialResult(f"{options.directory}: cannot be served: {type(error).__name__}: export it again")
    sys.stdout.buffer.write(msgspec.json.encode(result))
    sys.stdout.flush()
    os._exit(0)  # libraries that tidy up are not waited for


def try_out(options: TrialOptions) -> None:
    """Load and run a checkpoint of either kind.

    Raises:
        CheckpointError, EngineError: it cannot be served.
        MemoryError: it takes too much of it.
    """
    directory = Path(options.directory)
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    is_traces = checkpoint_kind(directory) == "tracegram"
    read = read_trace_checkpoint if is_traces else read_checkpoint
    files = read(directory, needs=()).files
    with contextlib.suppress(ModuleNotFoundError):  # loading says so better
        importlib.import_module(_ENGINE_MODULES[options.engine])
    _limit_memory(sum(record.size_bytes for record in files.values()))
    if is_traces:
        _try_traces(options, directory, threads)
        return
    classifier = Classifier(load_engine(options.engine, directory, threads, options.precision), min_packets=1)
    for flows in ([SHORT_FLOW], [LONG_FLOW, SHORT_FLOW], every_token(classifier.checkpoint.features)):
        if None in classifier.classify(flows):
            raise CheckpointError(_not_finite(directory))


def _try_traces(options: TrialOptions, directory: Path, threads: int) -> None:
    engine = load_beside(options.engine, directory, threads, options.precision)
    network = engine.checkpoint.network
    own = engine.checkpoint.mm4flow
    flows = [SHORT_FLOW, LONG_FLOW, *every_token(own.features if own else Mm4flowFeatures())]
    features = np.zeros((len(flows), network.embedding_size), np.float32)
    if engine.checkpoint.has_encoder:
        features = engine.embed(flows)
        _check(directory, features, (len(flows), network.feature_size))
    for count in (1, len(flows)):
        times = np.arange(count, dtype=np.int64) * 1_000_000
        context = trace_context(flows[:count], network.context)
        scores = engine.score([TraceInput(features[:count], times, times, context)])
        _check(directory, scores.logits, (1, network.n_class))
        _check(directory, scores.importance[0], (count,))


def _check(directory: Path, found: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if found.shape != shape:
        raise CheckpointError(f"{directory}: expected numbers of shape {shape}, got {found.shape}: export it again")
    if not np.isfinite(found).all():
        raise CheckpointError(_not_finite(directory))


def _not_finite(directory: Path) -> str:
    return f"{directory}: gives NaN or infinity for an ordinary flow, expected numbers: train it again"


def _limit_memory(files_bytes: int) -> None:
    """Limit the address space to what it is now and what such files explain; where /proc does not say, not at all."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + SPARE_MEMORY_BYTES + MEMORY_PER_FILE_BYTE * files_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
