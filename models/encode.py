"""MM4flow's token sequences from flows, a whole batch at a time. The only place that knows the vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import MAX_CONTENT_BYTES, MAX_PAYLOAD_LENGTHS, Flow
from tapline.models.own_addresses import Content, content_without_addresses
from tapline.models.packed_packets import join_lengths

FEATURE_VERSION = 1
"""Version of the encoding; a checkpoint of another version is refused."""

PAD, UNK, CLS, SEP, MASK = range(5)
FIRST_TOKEN = 7
"""First id after the special tokens and the two reserved ones."""

MAX_LENGTH = 1500
PS_VOCABULARY = FIRST_TOKEN + 2 * MAX_LENGTH
BYTES_VOCABULARY = FIRST_TOKEN + 256
PS_MAX_TOKENS = 256
BYTES_MAX_TOKENS = 512


class Mm4flowFeatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a flow a checkpoint reads: payload lengths, and content bytes each way.

    `mask_addresses`: the addresses of the flow's endpoints are zero in its content.
    """

    payload_lengths: int = MAX_PAYLOAD_LENGTHS
    content_bytes: int = MAX_CONTENT_BYTES
    mask_addresses: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.payload_lengths <= MAX_PAYLOAD_LENGTHS:
            raise ValueError(f"payload_lengths: expected 1 to {MAX_PAYLOAD_LENGTHS}, got {self.payload_lengths}")
        if not 0 <= self.content_bytes <= MAX_CONTENT_BYTES:
            raise ValueError(f"content_bytes: expected 0 to {MAX_CONTENT_BYTES}, got {self.content_bytes}")

    @property
    def most_ps_tokens(self) -> int:
        """Length of the longest `ps` sequence."""
        return self.payload_lengths + 2

    @property
    def most_bytes_tokens(self) -> int:
        """Length of the longest `bytes` sequence."""
        return min(2 * self.content_bytes + 3, BYTES_MAX_TOKENS)


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of n flows, packed end to end without padding.

    `ps_tokens` int32 [sum of ps lengths], `bytes_tokens` int32 and `bytes_types` int32 [sum of bytes lengths];
    the sequence of flow i is at `offsets[i]:offsets[i + 1]`, offsets int64 [n + 1].
    """

    ps_tokens: NDArray[np.int32]
    ps_offsets: NDArray[np.int64]
    bytes_tokens: NDArray[np.int32]
    bytes_types: NDArray[np.int32]
    bytes_offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ps_offsets) - 1

    @property
    def ps_counts(self) -> NDArray[np.int64]:
        """Tokens per flow in `ps_tokens`, int64 [n]."""
        return np.diff(self.ps_offsets)

    @property
    def bytes_counts(self) -> NDArray[np.int64]:
        """Tokens per flow in `bytes_tokens`, int64 [n]."""
        return np.diff(self.bytes_offsets)

    @property
    def lengths_out_of_vocabulary(self) -> int:
        """Payload lengths above `MAX_LENGTH` (segmentation offload), which the model reads as `[UNK]`."""
        return int(np.count_nonzero(self.ps_tokens == UNK))


def encode(flows: Sequence[Flow], features: Mm4flowFeatures | None = None) -> TokenBatch:
    """Encode flows as MM4flow reads them.

    `ps`: `[CLS]` lengths `[SEP]`; length +n is token 5+2n, -n is 6+2n for n up to 1500, `[UNK]` beyond.
    `bytes`: `[CLS]` originator `[SEP]` responder `[SEP]`, byte b is 7+b, cut to 512 tokens longest direction first
    (256 + 256 bytes become 254 + 255).
    """
    features = features or Mm4flowFeatures()
    ps_tokens, ps_offsets = _encode_lengths(flows, features.payload_lengths)
    return TokenBatch(ps_tokens, ps_offsets, *_encode_content(contents(flows, features), features.content_bytes))


def pad(
    tokens: NDArray[np.int32], offsets: NDArray[np.int64], rows: NDArray[np.int64], length: int | None = None
) -> NDArray[np.int64]:
    """The packed sequences `rows` as a matrix, int64 [len(rows), longest or `length`], padded with `PAD`."""
    starts = offsets[rows]
    counts = offsets[rows + 1] - starts
    columns = np.arange(length or int(counts.max(initial=0)))
    inside = columns < counts[:, None]
    padded = np.full(inside.shape, PAD, np.int64)
    padded[inside] = tokens[(starts[:, None] + columns)[inside]]
    return padded


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _encode_lengths(flows: Sequence[Flow], limit: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    joined = join_lengths(flows, limit)
    offsets = _offsets(joined.counts + 2)
    magnitudes = np.abs(joined.lengths)
    values = np.where(joined.lengths > 0, 5, 6) + 2 * magnitudes
    values[magnitudes > MAX_LENGTH] = UNK
    return _fill(offsets, [(offsets[:-1], CLS), (offsets[1:] - 1, SEP)], values), offsets


def contents(flows: Sequence[Flow], features: Mm4flowFeatures) -> list[Content]:
    """The content that is read of each flow, not yet cut; without its endpoints' addresses where `features` says so."""
    if features.mask_addresses and features.content_bytes:
        return [content_without_addresses(flow) for flow in flows]
    return [Content(flow.orig_bytes, flow.resp_bytes) for flow in flows]


def _encode_content(
    contents: Sequence[Content], limit: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    forward = np.fromiter((min(len(content.orig), limit) for content in contents), np.int64, len(contents))
    backward = np.fromiter((min(len(content.resp), limit) for content in contents), np.int64, len(contents))
    while (over := forward + backward > BYTES_MAX_TOKENS - 3).any():  # the longer gives, the originator when equal
        longer = forward >= backward
        forward = forward - (over & longer)
        backward = backward - (over & ~longer)
    offsets = _offsets(forward + backward + 3)
    content = b"".join(
        chain.from_iterable(
            (content.orig[:f], content.resp[:b])
            for content, f, b in zip(contents, forward.tolist(), backward.tolist(), strict=True)
        )
    )
    middle = offsets[:-1] + forward + 1
    values = np.frombuffer(content, np.uint8).astype(np.int32) + FIRST_TOKEN
    tokens = _fill(offsets, [(offsets[:-1], CLS), (middle, SEP), (offsets[1:] - 1, SEP)], values)
    parts = np.stack((forward + 2, backward + 1), axis=1).ravel()
    types = np.repeat(np.tile(np.array([0, 1], np.int32), len(contents)), parts)
    return tokens, types, offsets


def _fill(
    offsets: NDArray[np.int64], special: list[tuple[NDArray[np.int64], int]], values: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Special tokens at their positions, `values` in order everywhere else."""
    total = int(offsets[-1])
    tokens = np.empty(total, np.int32)
    free = np.ones(total, np.bool_)
    for positions, token in special:
        tokens[positions] = token
        free[positions] = False
    tokens[free] = values
    return tokens
