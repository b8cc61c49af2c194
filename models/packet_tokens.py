"""Tracegram's token sequences from packet heads (its stage M0), a whole batch at a time. The only place that knows the
vocabulary; where headers lie is told by `packet_headers`, own addresses in payloads by `own_addresses`.

Source: Qu et al., "Tracegram: Framing Trace-Level Traffic Analysis with Temporally-Aware Multiple Instance Learning",
USENIX Security 2026.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import HEAD_TOKEN_COST, Flow
from tapline.models.own_addresses import mask_own_addresses
from tapline.models.packet_headers import HeadBytes, clear_hosts, clear_inner_link, find_headers, gather, header_ends

PACKET_FEATURE_VERSION = 1
"""Version of the encoding; a checkpoint of another version is refused."""

PACKET_START, END, PADDING, CLASS = 256, 257, 258, 259
VOCABULARY = 260
MAX_SEQUENCE = 12_032
"""Longest sequence of the published configuration, 47 windows of 256 tokens."""


class TracegramFeatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of a flow's packet heads a checkpoint reads.

    * `payload`: transport payload and link padding too; otherwise heads end with the transport header.
    * `max_tokens`: longest sequence.
    * `zero_checksums`: IP and transport checksums are zero. They depend on the addresses and ports that are; published
      checkpoints were trained with them as captured.
    * `mask_addresses`: the addresses of the flow's endpoints are zero in the payload too.
    """

    payload: bool = False
    max_tokens: Annotated[int, msgspec.Meta(ge=2, le=MAX_SEQUENCE)] = 512
    zero_checksums: bool = True
    mask_addresses: bool = True


@dataclass(frozen=True)
class PacketTokens:
    """The tokens of n flows, packed end to end without padding.

    `tokens` int32 [sum of lengths]; the sequence of flow i is at `offsets[i]:offsets[i + 1]`, offsets int64 [n + 1].
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens per flow, int64 [n]."""
        return np.diff(self.offsets)


def encode_packets(flows: Sequence[Flow], features: TracegramFeatures | None = None) -> PacketTokens:
    """Encode the packet heads of flows as Tracegram's flow encoder reads them.

    `259`, then per packet `256`, the link-type byte, the seconds since the flow's previous packet as 8 bytes (IEEE
    double, big-endian; 0.0 for the first) and the head's bytes, cut to `max_tokens - 1` tokens; then `257`. Ethernet
    and IP addresses and TCP and UDP ports are zero, of tunnels those of the outermost and of the flow's own header.
    A flow without heads is `259 257`. Heads that a sensor sent without payload are read as they are, also by a
    checkpoint that reads payload.
    """
    features = features or TracegramFeatures()
    heads = gather(flows)
    outer, inner = find_headers(heads, flows)
    ends = heads.ends
    if features.mask_addresses and features.payload:
        mask_own_addresses(heads, flows, inner, outer)
    if not features.payload:
        whole = np.fromiter((flow.heads_kind == "full" for flow in flows), np.bool_, len(flows))[heads.flow]
        ends = np.where(whole, header_ends(heads, outer, inner), ends)
    clear_inner_link(heads, outer, inner)
    for headers in (outer, inner):
        clear_hosts(heads, headers, features.zero_checksums)
    return _assemble(heads, ends, features.max_tokens)


def pad_packets(batch: PacketTokens, rows: NDArray[np.int64], length: int | None = None) -> NDArray[np.int64]:
    """The sequences `rows` as a matrix, int64 [len(rows), longest or `length`], padded with `PADDING`."""
    starts = batch.offsets[rows]
    counts = batch.offsets[rows + 1] - starts
    columns = np.arange(length or int(counts.max(initial=0)))
    inside = columns < counts[:, None]
    padded = np.full(inside.shape, PADDING, np.int64)
    padded[inside] = batch.tokens[(starts[:, None] + columns)[inside]]
    return padded


def _assemble(heads: HeadBytes, ends: NDArray[np.int64], max_tokens: int) -> PacketTokens:
    """The sequences: class, heads and end of every flow, each cut to `max_tokens`."""
    sizes = ends - heads.starts
    filled = np.concatenate((np.zeros(1, np.int64), np.cumsum(HEAD_TOKEN_COST + sizes)))
    edges = filled[heads.first]  # tokens of heads before each flow
    n_flows = len(edges) - 1
    begins = edges + 2 * np.arange(n_flows + 1)  # of the sequences, before they are cut
    tokens = np.empty(int(begins[-1]), np.int32)
    tokens[begins[:-1]] = CLASS
    tokens[begins[1:] - 1] = END
    at = filled[:-1] + 2 * heads.flow + 1
    tokens[at] = PACKET_START
    tokens[at + 1] = heads.links
    times = (heads.gaps_us / 1e6).astype(">f8").view(np.uint8).reshape(-1, 8)
    tokens[at[:, None] + np.arange(2, HEAD_TOKEN_COST)] = times
    ramp = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tokens[np.repeat(at + HEAD_TOKEN_COST, sizes) + ramp] = heads.raw[np.repeat(heads.starts, sizes) + ramp]
    counts = np.diff(begins)
    kept = np.minimum(counts, max_tokens)
    if (kept < counts).any():
        place = np.arange(len(tokens)) - np.repeat(begins[:-1], counts)
        tokens[begins[:-1] + kept - 1] = END
        tokens = tokens[place < np.repeat(kept, counts)]
    return PacketTokens(tokens, np.concatenate((np.zeros(1, np.int64), np.cumsum(kept))))
