"""How a batch is cut into pieces of similar length, so that little of what is computed is padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tapline.models.encode import TokenBatch, pad

MAX_PADDING = 0.25
"""Largest share of a computed piece that may be padding."""

MAX_PIECE_TOKENS = 8192
MAX_PIECE_FLOWS = 64

MM4FLOW_INPUTS = ("ps_tokens", "bytes_tokens", "bytes_types")
"""What an MM4flow network reads, by the names of its graph."""


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
