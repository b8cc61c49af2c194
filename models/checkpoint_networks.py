"""The sizes of the networks that checkpoints hold, and how many weights such networks have in any case."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from tapline.models.encode import BYTES_MAX_TOKENS, PS_MAX_TOKENS
from tapline.models.foreign_text import clean
from tapline.models.trace_context import SIZES, Field, table_starts

_Size = Annotated[int, msgspec.Meta(ge=1, le=65536)]


class Mm4flowNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of an MM4flow network; the names of the first four are the published ones."""

    d_model: _Size
    n_layer: _Size
    n_head: _Size
    dim_ff: _Size
    n_class: _Size
    ps_max_tokens: _Size = PS_MAX_TOKENS
    bytes_max_tokens: _Size = BYTES_MAX_TOKENS
    fusion_heads: _Size = 4

    def __post_init__(self) -> None:
        for heads in (self.n_head, self.fusion_heads):
            if self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {heads} heads")

    @property
    def least_weights(self) -> int:
        """Weights that such a network has in any case."""
        layer = self.d_model * (4 * self.d_model + 2 * self.dim_ff)
        return 2 * self.n_layer * layer + self.d_model * (self.ps_max_tokens + self.bytes_max_tokens)


class TracegramNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of a Tracegram network, those of the flow encoder by their published names.

    `encoder` says what turns a flow into `feature_size` numbers: Tracegram's encoder, whose feature is `emb_dim` wide,
    or the embedding of an MM4flow, twice its width, or the flow's context alone; then the sizes from `emb_dim` on mean
    nothing.
    `context` names what else is read of each flow (`models.trace_context`): each value has an embedding, and their sum
    goes through one hidden layer, both as wide as the feature. `bag` adds to the logits what the values say that occur
    in a trace, in whatever order and however often, each with a weight for each class. `decoder_heads` and
    `decoder_ff` are of the layer whose single query reads a flow; `time_encoding` adds the gap to the previous flow and
    the flow's duration to its feature.
    """

    n_class: _Size
    encoder: Literal["tracegram", "mm4flow", "context"] = "tracegram"
    feature_size: _Size = 64
    queries: _Size = 100
    time_encoding: bool = True
    context: tuple[Field, ...] = ()
    bag: bool = False
    emb_dim: _Size = 64
    dim: _Size = 96
    depth: _Size = 2
    heads: _Size = 4
    dim_head: _Size = 32
    n_local_attn_heads: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 2
    local_attn_window_size: _Size = 256
    blindspot_size: _Size = 64
    max_seq_len: _Size = 512
    decoder_heads: _Size = 4
    decoder_ff: _Size = 256

    def __post_init__(self) -> None:
        if len(set(self.context)) != len(self.context):
            raise ValueError("a field of the context is named twice")
        if unknown := [field for field in self.context if field not in SIZES]:
            raise ValueError(f"no such field of the context: {clean(unknown[0])}")
        if self.encoder == "context" and not self.context:
            raise ValueError("an encoder that reads the context alone, and no field of it")
        if self.bag and not self.context:
            raise ValueError("a bag of values of the context, and no field of it")
        if self.encoder != "tracegram":
            return
        if self.feature_size != self.emb_dim:
            raise ValueError(f"feature_size {self.feature_size} is not the encoder's emb_dim {self.emb_dim}")
        if self.n_local_attn_heads > self.heads:
            raise ValueError(f"{self.n_local_attn_heads} local heads of {self.heads}")
        if self.max_seq_len % self.local_attn_window_size:
            raise ValueError(f"max_seq_len {self.max_seq_len} is not a multiple of the window")
        if self.emb_dim % self.decoder_heads or self.dim % 2 or self.dim_head % 2:
            raise ValueError("emb_dim must be a multiple of decoder_heads, dim and dim_head even")

    @property
    def embedding_size(self) -> int:
        """Numbers that are computed of each flow before its trace is scored: none where its context says all."""
        return 0 if self.encoder == "context" else self.feature_size

    @property
    def least_weights(self) -> int:
        """Weights that such a network has in any case, without an MM4flow."""
        layer = self.dim * (4 * self.heads * self.dim_head + 8 * self.dim)
        encoder = self.depth * layer + self.emb_dim * self.decoder_ff if self.encoder == "tracegram" else 0
        context = (self.feature_size + self.n_class * self.bag) * table_starts(self.context)[1]
        return 16 * self.feature_size**2 + self.queries * (self.feature_size + self.queries) + encoder + context
