"""Batches of real flows for training: weighted draws, augmentation of flows and tokens, batches of like length.

Flows are cut here and encoded by `models.encode`, so that training reads the bits that serving reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapline.models.encode import (
    BYTES_VOCABULARY,
    FIRST_TOKEN,
    MASK,
    MAX_LENGTH,
    Mm4flowFeatures,
    TokenBatch,
    encode,
    pad,
)
from tapline.models.flow import Flow
from tapline.training.data.store import chunks
from tapline.training.loop.config import Augmentation

POOL_BATCHES, POOL_FLOWS = 64, 16_384
"""Batches are formed by length within a pool of so many, or of so many flows (but 16 batches at least), so that their
order stays random. The more, the less padding."""

PLAIN_FLOWS = 16_384
"""Flows that are encoded at once where each is read once."""


@dataclass(frozen=True)
class Batch:
    """Padded tokens of B flows, int64 [B, P] and [B, S] (twice), and the index of each flow in its data set [B]."""

    ps_tokens: Tensor
    bytes_tokens: Tensor
    bytes_types: Tensor
    rows: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int((self.ps_tokens > 0).sum() + (self.bytes_tokens > 0).sum())

    @property
    def computed(self) -> int:
        """Tokens that the network computes, padding with them."""
        return self.ps_tokens.numel() + self.bytes_tokens.numel()

    def part(self, places: NDArray[np.int64]) -> Batch:
        """The flows at these places of the batch, padded as the whole batch: `dropout` needs its sizes."""
        index = torch.from_numpy(places)
        return Batch(self.ps_tokens[index], self.bytes_tokens[index], self.bytes_types[index], self.rows[places])


@dataclass(frozen=True)
class TrainingSet:
    """Flows with the index of their class, int64 [n], how often to draw each, float64 [n] summing to 1, and where they
    are from captures the number of each one's, [n]. The first `n_label` classes are labels, one after them background;
    None: every class."""

    flows: Sequence[Flow]
    truth: NDArray[np.int64]
    weights: NDArray[np.float64]
    captures: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    n_label: int | None = None


def prefix(flow: Flow, packets: int) -> Flow:
    """What was known of a flow after its first `packets` packets with payload; content is cut to what they carried."""
    lengths = flow.payload_lengths[:packets]
    up = sum(length for length in lengths if length > 0)
    down = -sum(length for length in lengths if length < 0)
    return msgspec.structs.replace(
        flow,
        payload_lengths=lengths,
        up=sum(length > 0 for length in lengths),
        down=sum(length < 0 for length in lengths),
        orig_bytes=flow.orig_bytes[:up],
        resp_bytes=flow.resp_bytes[:down],
        complete=False,
    )


def first_content(flow: Flow, content_bytes: int) -> Flow:
    """The flow with so many content bytes each way."""
    return msgspec.structs.replace(
        flow, orig_bytes=flow.orig_bytes[:content_bytes], resp_bytes=flow.resp_bytes[:content_bytes]
    )


def one_way(flow: Flow, *, forward: bool) -> Flow:
    """The flow as seen in one direction only; unchanged when nothing was sent that way."""
    lengths = [length for length in flow.payload_lengths if (length > 0) == forward]
    if not lengths:
        return flow
    if forward:
        return msgspec.structs.replace(flow, payload_lengths=lengths, down=0, resp_bytes=b"")
    return msgspec.structs.replace(flow, payload_lengths=lengths, up=0, orig_bytes=b"")


def swap(flow: Flow) -> Flow:
    """The flow with originator and responder exchanged."""
    return msgspec.structs.replace(
        flow,
        payload_lengths=[-length for length in flow.payload_lengths],
        up=flow.down,
        down=flow.up,
        orig_bytes=flow.resp_bytes,
        resp_bytes=flow.orig_bytes,
    )


def draw_weights(
    classes: NDArray[np.integer[Any]], captures: NDArray[np.integer[Any]], class_power: float, capture_power: float
) -> NDArray[np.float64]:
    """How often to draw each flow, float64 [n] summing to 1, by the numbers of its class and capture, [n] each.

    Within a class a capture of n flows weighs `n ** capture_power`, and a class of c captures `c ** class_power`: 0
    draws every capture of a class, and every class, equally often.
    """
    pairs, group, flows = np.unique(
        np.stack((classes, captures), axis=1), axis=0, return_inverse=True, return_counts=True
    )
    _, class_of, captures_in = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    flows_in = flows.astype(np.float64)
    total = np.bincount(class_of, flows_in**capture_power)
    share = flows_in ** (capture_power - 1) / total[class_of] * captures_in[class_of].astype(np.float64) ** class_power
    weights = share[group.ravel()]
    return np.asarray(weights / weights.sum())


def cut_flows(flows: Sequence[Flow], how: Augmentation, rng: np.random.Generator) -> list[Flow]:
    """Randomly shortened copies of the flows."""
    cut = []
    for flow in flows:
        packets = len(flow.payload_lengths)
        if packets > 1 and rng.random() < how.prefix:
            flow = prefix(flow, min(packets - 1, int(2 ** rng.uniform(0, 5))))
        if rng.random() < how.one_way:
            flow = one_way(flow, forward=rng.random() < 0.5)
        if rng.random() < how.swap:
            flow = swap(flow)
        if rng.random() < how.no_content:
            flow = msgspec.structs.replace(flow, orig_bytes=b"", resp_bytes=b"")
        cut.append(flow)
    return cut


def disturb_tokens(tokens: TokenBatch, how: Augmentation, rng: np.random.Generator) -> TokenBatch:
    """Mask and change tokens; the special ones stay."""
    return TokenBatch(
        _disturb_lengths(tokens, how, rng),
        tokens.ps_offsets,
        _disturb_bytes(tokens, how, rng),
        tokens.bytes_types,
        tokens.bytes_offsets,
    )


def _shares(largest: float, counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """One share per flow up to `largest`, repeated for each of its tokens."""
    return np.repeat(rng.uniform(0, largest, len(counts)), counts)


def _disturb_lengths(tokens: TokenBatch, how: Augmentation, rng: np.random.Generator) -> NDArray[np.int32]:
    ps = tokens.ps_tokens.copy()
    real = ps >= FIRST_TOKEN
    signs, lengths = (ps - FIRST_TOKEN) % 2, (ps - FIRST_TOKEN) // 2 + 1
    factors = np.repeat(np.exp(rng.normal(0, how.jitter_lengths, len(tokens))), tokens.ps_counts)
    factors[np.repeat(rng.random(len(tokens)) < 0.5, tokens.ps_counts)] = 1
    moved = np.clip(np.rint(lengths * factors), 1, MAX_LENGTH).astype(np.int32)
    ps[real] = (FIRST_TOKEN + 2 * (moved - 1) + signs)[real]
    ps[real & (rng.random(len(ps)) < _shares(how.mask_lengths, tokens.ps_counts, rng))] = MASK
    return ps


def _disturb_bytes(tokens: TokenBatch, how: Augmentation, rng: np.random.Generator) -> NDArray[np.int32]:
    content = tokens.bytes_tokens.copy()
    real = content >= FIRST_TOKEN
    swap = real & (rng.random(len(content)) < _shares(how.random_bytes, tokens.bytes_counts, rng))
    content[swap] = rng.integers(FIRST_TOKEN, BYTES_VOCABULARY, int(swap.sum()))
    content[real & (rng.random(len(content)) < _shares(how.mask_bytes, tokens.bytes_counts, rng))] = MASK
    return content


def to_batch(tokens: TokenBatch, members: NDArray[np.int64], rows: NDArray[np.int64]) -> Batch:
    """The flows `members` of encoded tokens as one padded batch."""
    ps, content, types = (
        torch.from_numpy(pad(values, offsets, members))
        for values, offsets in (
            (tokens.ps_tokens, tokens.ps_offsets),
            (tokens.bytes_tokens, tokens.bytes_offsets),
            (tokens.bytes_types, tokens.bytes_offsets),
        )
    )
    return Batch(ps, content, types, rows)


def training_batches(
    flows: Sequence[Flow],
    weights: NDArray[np.float64],
    draws: int,
    batch_flows: int,
    features: Mm4flowFeatures,
    how: Augmentation,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """One epoch: `draws` flows by weight with replacement, augmented, in batches of like length."""
    drawn = rng.choice(len(flows), draws, p=weights)
    pool = batch_flows * max(16, min(POOL_BATCHES, POOL_FLOWS // batch_flows))
    for start in range(0, draws, pool):
        rows = drawn[start : start + pool]
        tokens = encode(cut_flows([flows[row] for row in rows], how, rng), features)
        tokens = disturb_tokens(tokens, how, rng)
        groups = by_length(tokens, batch_flows)
        for index in rng.permutation(len(groups)):
            yield to_batch(tokens, groups[index], rows[groups[index]])


def plain_batches(flows: Sequence[Flow], batch_flows: int, features: Mm4flowFeatures) -> Iterator[Batch]:
    """Every flow once, as it is, in batches of like length; `PLAIN_FLOWS` are in memory at a time."""
    start = 0
    for chunk in chunks(flows, PLAIN_FLOWS):
        tokens = encode(chunk, features)
        for members in by_length(tokens, batch_flows):
            yield to_batch(tokens, members, members + start)
        start += len(chunk)


def by_length(tokens: TokenBatch, batch_flows: int) -> list[NDArray[np.int64]]:
    """Flow indices in groups of `batch_flows`, one of them smaller, such that each is padded little.

    The flows are cut in two, by payload lengths or by content tokens, where the two parts padded to their longest flow
    take the least room; the parts again, until each is a group.
    """
    counts = np.stack((tokens.ps_counts, tokens.bytes_counts))  # [2, n]
    groups, whole = [], [np.arange(len(tokens))]
    while whole:
        members = whole.pop()
        if len(members) <= batch_flows:
            groups.append(members)
        else:
            whole += _cut(members, counts, batch_flows)
    return groups


def _cut(
    members: NDArray[np.int64], counts: NDArray[np.int64], batch_flows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The flows in two parts, the first a multiple of `batch_flows`, that take the least room when padded."""
    ends = np.arange(batch_flows, len(members), batch_flows)
    found = []
    for side in counts:
        order = members[np.argsort(side[members], kind="stable")]
        sizes = counts[:, order]
        low = np.maximum.accumulate(sizes, axis=1)[:, ends - 1].sum(0)
        high = np.maximum.accumulate(sizes[:, ::-1], axis=1)[:, ::-1][:, ends].sum(0)
        room = ends * low + (len(members) - ends) * high
        found.append((int(room.min()), order, int(ends[room.argmin()])))
    _, order, end = min(found, key=lambda cut: cut[0])
    return order[:end], order[end:]
