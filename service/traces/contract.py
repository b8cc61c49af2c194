"""What this package takes from models and engines for traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Calibration, CheckpointError, TracegramNetwork, Unknown
from models.packets import PacketTokens, TracegramFeatures
from models.trace import TraceSettings


class Early(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an open window gets a verdict."""

    confidence: float = 1.0
    min_flows: int = 4


class TracegramCheckpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest of a trace checkpoint."""

    kind: Literal["tracegram"]
    name: str
    version: str
    network: TracegramNetwork
    labels: list[str]
    features: TracegramFeatures = TracegramFeatures()
    trace: TraceSettings = TraceSettings()
    calibration: Calibration = Calibration()
    unknown: Unknown = Unknown()
    early: Early = Early()
    metrics: dict[str, Any] = {}


@dataclass(frozen=True)
class TraceInput:
    """features float32 [k, F]; start_us int64 [k]; duration_us int64 [k]."""

    features: NDArray[np.float32]
    start_us: NDArray[np.int64]
    duration_us: NDArray[np.int64]


@dataclass(frozen=True)
class TraceScores:
    """logits float32 [t, classes]; importance: list of float32 [k]."""

    logits: NDArray[np.float32]
    importance: list[NDArray[np.float32]]


class TraceEngine(Protocol):
    """Runs a trace checkpoint."""

    checkpoint: TracegramCheckpoint

    def embed(self, batch: PacketTokens) -> NDArray[np.float32]:
        """Features float32 [n, F]."""
        ...

    def score(self, traces: Sequence[TraceInput]) -> TraceScores:
        """Scores of traces."""
        ...


def load_trace_engine(name: str, directory: Path, threads: int = 0) -> TraceEngine:
    """Load a trace checkpoint."""
    raise CheckpointError(f"{directory}: no trace checkpoint")
