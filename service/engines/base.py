"""The protocol that every engine fulfils, and how a batch is cut into pieces of similar length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.encode import TokenBatch, pad

MAX_PADDING = 0.25
"""Largest share of a computed piece that may be padding."""

MAX_PIECE_TOKENS = 8192
MAX_PIECE_FLOWS = 64

MM4FLOW_INPUTS = ("ps_tokens", "bytes_tokens", "bytes_types")
"""What an MM4flow network reads, by the names of its graph."""

EngineName = Literal["onnx", "torch"]
Precision = Literal["float32", "bfloat16", "int8"]
"""What an engine computes with: float32 by any, int8 by ONNX Runtime, bfloat16 by torch."""


class EngineError(RuntimeError):
    """An engine cannot be had or cannot run a checkpoint; the message says what to do."""


@dataclass(frozen=True)
class Scores:
    """What an engine computes for n flows: logits float32 [n, classes] and embeddings float32 [n, 2 width].

    `padding_tokens` were computed beside the real ones.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    padding_tokens: int = 0


class Engine(Protocol):
    """Runs one checkpoint. A flow's scores do not depend on the flows beside it, to rounding."""

    checkpoint: Checkpoint

    def run(self, batch: TokenBatch) -> Scores:
        """Scores of every flow of the batch, in its order."""
        ...


def load_engine(
    name: EngineName, directory: Path, threads: int = 0, precision: Precision = "float32", device: int = 0
) -> Engine:
    """Load a checkpoint directory into an engine.

    Args:
        name: of the engine.
        directory: of a flow checkpoint.
        threads: 0 means one per core.
        precision: what it computes with.
        device: number of the GPU, where there are any.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another version, or has no model of this precision.
        EngineError: the engine is not installed, refuses the model, or has no such precision.
    """
    check_precision(name, precision)
    if name == "torch":
        try:
            from service.engines.torch_engine import TorchEngine
        except ModuleNotFoundError as error:
            raise missing_torch(error) from None
        return TorchEngine(directory, threads, precision, device)
    from service.engines.onnx_engine import OnnxEngine

    return OnnxEngine(directory, threads, precision)


def load_engines(name: EngineName, directory: Path, threads: int = 0, precision: Precision = "float32") -> list[Engine]:
    """One engine for each GPU that the engine can use, at least one; as `load_engine`.

    Raises:
        CheckpointError, EngineError: as there.
    """
    return [load_engine(name, directory, threads, precision, device) for device in range(count_devices(name))]


def count_devices(name: EngineName) -> int:
    """Engines that it pays to run side by side: one for each GPU, one without."""
    if name != "torch":
        return 1
    try:
        from service.engines.torch_common import count_gpus
    except ModuleNotFoundError as error:
        raise missing_torch(error) from None
    return max(1, count_gpus())


def check_precision(name: EngineName, precision: Precision) -> None:
    """Refuse what an engine cannot compute with.

    Raises:
        EngineError: it has no such precision.
    """
    if precision == {"onnx": "bfloat16", "torch": "int8"}[name]:
        other = {"onnx": "torch", "torch": "onnx"}[name]
        raise EngineError(f"the {name} engine does not compute in {precision}: use --engine {other}, or float32")


def missing_torch(error: ModuleNotFoundError) -> EngineError:
    """What to say where torch, or what comes with it, is not installed."""
    return EngineError(
        f"the torch engine needs {error.name}: install the extra `gpu` from where this tapline came from (pip install "
        "'.[gpu]' in a checkout), or use --engine onnx"
    )


def pieces(batch: TokenBatch) -> list[NDArray[np.int64]]:
    """Cut a batch into pieces of flows of similar length; each is int64 indices of its flows.

    A piece is padded to its longest sequences; no piece spends more than `MAX_PADDING` of its tokens on padding, nor
    holds more than `MAX_PIECE_TOKENS` tokens or `MAX_PIECE_FLOWS` flows (a single flow always fits).
    """
    ps, content = batch.ps_counts, batch.bytes_counts
    order = np.lexsort((ps, content, _octave(ps))).astype(np.int64)
    found: list[NDArray[np.int64]] = []
    start = longest_ps = longest_content = real = 0
    rows = zip(ps[order].tolist(), content[order].tolist(), strict=True)
    for end, (n_ps, n_content) in enumerate(rows):
        flows = end - start + 1
        computed = flows * (max(longest_ps, n_ps) + max(longest_content, n_content))
        wasteful = computed - (real + n_ps + n_content) > MAX_PADDING * computed
        if flows > 1 and (wasteful or computed > MAX_PIECE_TOKENS or flows > MAX_PIECE_FLOWS):
            found.append(order[start:end])
            start, longest_ps, longest_content, real = end, 0, 0, 0
        longest_ps = max(longest_ps, n_ps)
        longest_content = max(longest_content, n_content)
        real += n_ps + n_content
    if len(order):
        found.append(order[start:])
    return found


def piece_inputs(batch: TokenBatch, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """What an MM4flow network reads of the piece `rows`, padded, int64 [len(rows), longest] each, in its order."""
    parts = (
        pad(batch.ps_tokens, batch.ps_offsets, rows),
        pad(batch.bytes_tokens, batch.bytes_offsets, rows),
        pad(batch.bytes_types, batch.bytes_offsets, rows),
    )
    return dict(zip(MM4FLOW_INPUTS, parts, strict=True))


def pieces_by_length(counts: NDArray[np.int64], max_items: int, max_rows: int) -> list[NDArray[np.int64]]:
    """Cut rows of `counts` items each into pieces of similar length, as `pieces` does with two lengths a row."""
    order = np.argsort(counts, kind="stable").astype(np.int64)
    found: list[NDArray[np.int64]] = []
    start = real = 0
    for end, count in enumerate(counts[order].tolist()):  # ascending, so each is the longest so far
        rows = end - start + 1
        wasteful = rows * count - (real + count) > MAX_PADDING * rows * count
        if rows > 1 and (wasteful or rows * count > max_items or rows > max_rows):
            found.append(order[start:end])
            start, real = end, 0
        real += count
    if len(order):
        found.append(order[start:])
    return found


def padding(batch: TokenBatch, rows: NDArray[np.int64]) -> int:
    """Padding tokens of the piece `rows`."""
    ps, content = batch.ps_counts[rows], batch.bytes_counts[rows]
    return int(len(rows) * (ps.max() + content.max()) - ps.sum() - content.sum())


def _octave(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Powers of two up to each count: flows of one octave are sorted together."""
    return np.log2(np.maximum(counts, 8)).astype(np.int64)
