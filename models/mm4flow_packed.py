"""MM4flow on packed sequences, no padding computed: for GPUs, whose kernels take sequences of any lengths at once.

Same weights and same results as `models.mm4flow`, which pads and is faster on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tapline.models.mm4flow import Bert, Layer, Mm4flow


@dataclass(frozen=True)
class Packed:
    """Token sequences of B flows end to end, N tokens in all.

    `tokens`, `types` int [N]; `offsets` int64 [B + 1], of which flow i has `offsets[i]:offsets[i + 1]`; `longest` and
    `shortest`: most and fewest tokens of a flow, known without asking the device.
    """

    tokens: Tensor
    types: Tensor
    offsets: Tensor
    longest: int
    shortest: int


class PackedOutput(NamedTuple):
    """`logits` float [B, C] and `embedding` float [B, 2D], as of `models.mm4flow.Mm4flowOutput`."""

    logits: Tensor
    embedding: Tensor


def packed_forward(model: Mm4flow, ps: Packed, content: Packed) -> PackedOutput:
    """Scores of B flows; `ps` are their payload lengths, `content` their bytes."""
    ps_hidden, bytes_hidden = (
        _encode(encoder.bert, part) for encoder, part in ((model.ps_encoder, ps), (model.bytes_encoder, content))
    )  # [N, D] each
    queries = torch.cat(
        (
            model.ps_cross_attention.query_states(ps_hidden[ps.offsets[:-1]]),
            model.bytes_cross_attention.query_states(bytes_hidden[content.offsets[:-1]]),
        ),
        dim=1,
    )  # [B, 2H, D]
    parts = [_padded(hidden, part) for hidden, part in ((ps_hidden, ps), (bytes_hidden, content))]
    hidden = torch.cat([states for states, _ in parts], dim=1)  # [B, P + S, D]
    inside = torch.cat([mask for _, mask in parts], dim=1)
    scores = (queries @ hidden.transpose(1, 2)).masked_fill(~inside.unsqueeze(1), float("-inf"))
    ps_means, bytes_means = (scores.softmax(dim=-1) @ hidden).chunk(2, dim=1)  # [B, H, D] each
    embedding = torch.cat((model.ps_cross_attention.mix(ps_means), model.bytes_cross_attention.mix(bytes_means)), dim=1)
    return PackedOutput(model.classifier(embedding), embedding)


def _places(part: Packed) -> tuple[Tensor, Tensor]:
    """The flow of every token and its place in that flow, int64 [N] each."""
    counts = part.offsets.diff()
    flow = torch.repeat_interleave(counts, output_size=len(part.tokens))
    return flow, torch.arange(len(part.tokens), device=part.offsets.device) - part.offsets[flow]


def _padded(hidden: Tensor, part: Packed) -> tuple[Tensor, Tensor]:
    """[N, D] as [B, longest, D], zero where padded, and where it is not, bool [B, longest]."""
    flow, place = _places(part)
    n_flows = len(part.offsets) - 1
    states = hidden.new_zeros(n_flows, part.longest, hidden.shape[1])
    states[flow, place] = hidden
    return states, torch.arange(part.longest, device=hidden.device) < part.offsets.diff()[:, None]


def _encode(bert: Bert, part: Packed) -> Tensor:
    embeddings = bert.embeddings
    _, place = _places(part)
    hidden: Tensor = embeddings.word_embeddings(part.tokens) + embeddings.position_embeddings(place)
    hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings(part.types))
    for layer in bert.encoder.layer:
        hidden = _layer(layer, hidden, part)  # type: ignore[arg-type]
    return hidden


def _layer(layer: Layer, hidden: Tensor, part: Packed) -> Tensor:
    attention = layer.attention.self
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(
            linear(hidden).unflatten(-1, (attention.n_head, -1)),
            part.offsets,
            min_seqlen=part.shortest,
            max_seqlen=part.longest,
        ).transpose(1, 2)  # [B, H, ragged, D / H]
        for linear in (attention.query, attention.key, attention.value)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).values().flatten(-2)  # [N, D]
    hidden = layer.attention.output(mixed, hidden)
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return]
