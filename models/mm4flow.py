"""The MM4flow network in torch: two BERT encoders and a cross-attention fusion, with the published weight names.

Source: Yang et al., "MM4flow: A Pre-trained Multi-modal Model for Versatile Network Traffic Analysis", CCS 2025,
doi 10.1145/3719027.3744804; the encoder is the post-norm BERT of Devlin et al., NAACL 2019.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import BYTES_VOCABULARY, PAD, PS_VOCABULARY

DROPOUT = 0.1
LAYER_NORM_EPS = 1e-12


class Mm4flowOutput(NamedTuple):
    """What one pass yields for B flows of P ps tokens, S bytes tokens and width D.

    `embedding` float [B, 2D] is what the classifier reads; the attentions are those of the two `[CLS]` rows over all
    P + S positions, averaged over heads, float [B, P + S], and sum to 1.
    """

    logits: Tensor
    embedding: Tensor
    ps_attention: Tensor
    bytes_attention: Tensor


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised."""

    def __init__(self, vocabulary: int, max_tokens: int, d_model: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, d_model, padding_idx=PAD)
        self.position_embeddings = nn.Embedding(max_tokens, d_model)
        self.token_type_embeddings = nn.Embedding(2, d_model)
        self.LayerNorm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        """`tokens`, `types` int64 [B, S] to float [B, S, D]."""
        positions = self.position_embeddings.weight[: tokens.shape[1]]  # [S, D]
        total = self.word_embeddings(tokens) + positions + self.token_type_embeddings(types)
        return self.dropout(self.LayerNorm(total))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Scaled dot-product attention of BERT, before its output projection."""

    def __init__(self, d_model: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`hidden` [B, S, D], `mask` bool [B, 1, 1, S], True where attended to; gives [B, S, D]."""
        query, key, value = (
            linear(hidden).unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # [B, H, S, D/H]
            for linear in (self.query, self.key, self.value)
        )
        dropout = DROPOUT if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(-2)


class AddNorm(nn.Module):
    """Project, add the residual, normalise."""

    def __init__(self, d_in: int, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_in, d_model)
        self.LayerNorm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """`hidden` [B, S, d_in], `residual` [B, S, D] to [B, S, D]."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with its output projection; `self` is the published name."""

    def __init__(self, d_model: int, n_head: int) -> None:
        super().__init__()
        self.self = SelfAttention(d_model, n_head)
        self.output = AddNorm(d_model, d_model)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.output(self.self(hidden, mask), hidden)  # type: ignore[no-any-return]


class Intermediate(nn.Module):
    """The wide half of the feed-forward block."""

    def __init__(self, d_model: int, dim_ff: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, dim_ff)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, F], exact GELU."""
        return functional.gelu(self.dense(hidden))


class Layer(nn.Module):
    """One post-norm BERT layer."""

    def __init__(self, network: Mm4flowNetwork) -> None:
        super().__init__()
        self.attention = Attention(network.d_model, network.n_head)
        self.intermediate = Intermediate(network.d_model, network.dim_ff)
        self.output = AddNorm(network.dim_ff, network.d_model)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        hidden = self.attention(hidden, mask)
        return self.output(self.intermediate(hidden), hidden)  # type: ignore[no-any-return]


class Layers(nn.Module):
    """The stack of layers; a module of its own for the sake of the weight names."""

    def __init__(self, network: Mm4flowNetwork) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(network) for _ in range(network.n_layer))


class Bert(nn.Module):
    """Embeddings and layers; padding (`PAD`) is never attended to."""

    def __init__(self, vocabulary: int, max_tokens: int, network: Mm4flowNetwork) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, max_tokens, network.d_model)
        self.encoder = Layers(network)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        """`tokens`, `types` int64 [B, S] to float [B, S, D]."""
        mask = (tokens != PAD)[:, None, None, :]
        hidden: Tensor = self.embeddings(tokens, types)
        for layer in self.encoder.layer:
            hidden = layer(hidden, mask)
        return hidden


class Transform(nn.Module):
    """The dense layer in front of BERT's masked-token decoder."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.LayerNorm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.LayerNorm(functional.gelu(self.dense(hidden)))  # type: ignore[no-any-return]


class Predictions(nn.Module):
    """Masked-token logits; weight and bias are shared with the word embeddings and `bias`, as published."""

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__()
        vocabulary, d_model = embeddings.word_embeddings.weight.shape
        self.transform = Transform(d_model)
        self.decoder = nn.Linear(d_model, vocabulary)
        self.decoder.weight = embeddings.word_embeddings.weight
        self.bias = self.decoder.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., vocabulary]."""
        return self.decoder(self.transform(hidden))  # type: ignore[no-any-return]


class MaskedTokenHead(nn.Module):
    """Holds `predictions` under its published name."""

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__()
        self.predictions = Predictions(embeddings)


class MaskedEncoder(nn.Module):
    """One modality: BERT with the masked-token head that pre-trains it."""

    def __init__(self, vocabulary: int, max_tokens: int, network: Mm4flowNetwork) -> None:
        super().__init__()
        self.bert = Bert(vocabulary, max_tokens, network)
        self.cls = MaskedTokenHead(self.bert.embeddings)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        """`tokens`, `types` int64 [B, S] to hidden states, float [B, S, D]."""
        return self.bert(tokens, types)  # type: ignore[no-any-return]


class RowAttention(nn.MultiheadAttention):
    """Multi-head attention of a single query row, with the weights of `nn.MultiheadAttention`.

    With one query, keys and values need not be projected: the query goes through the key weights instead, and the value
    weights act on the weighted mean of the states. The key bias adds the same to every score, so softmax drops it.
    """

    def query_states(self, row: Tensor) -> Tensor:
        """`row` [B, D] to one vector per head that scores hidden states, [B, H, D]."""
        d_model, n_head = self.embed_dim, self.num_heads
        query = functional.linear(row, self.in_proj_weight[:d_model], self.in_proj_bias[:d_model])  # [B, D]
        query = query.view(-1, n_head, 1, d_model // n_head) / math.sqrt(d_model // n_head)  # [B, H, 1, D/H]
        key_weight = self.in_proj_weight[d_model : 2 * d_model].view(n_head, -1, d_model)  # [H, D/H, D]
        return torch.matmul(query, key_weight).squeeze(-2)

    def mix(self, means: Tensor) -> Tensor:
        """`means` [B, H, D], the weighted means of the states, to the attention's output [B, D]."""
        d_model, n_head = self.embed_dim, self.num_heads
        value_weight = self.in_proj_weight[2 * d_model :].view(n_head, -1, d_model).transpose(1, 2)  # [H, D, D/H]
        values = torch.matmul(means.unsqueeze(-2), value_weight).flatten(1)  # [B, D]
        return self.out_proj(values + self.in_proj_bias[2 * d_model :])  # type: ignore[no-any-return]


class Mm4flow(nn.Module):
    """Both encoders, the fusion and the classifier. Only the `[CLS]` row of each fusion attention is computed."""

    def __init__(self, network: Mm4flowNetwork) -> None:
        super().__init__()
        d_model = network.d_model
        self.ps_encoder = MaskedEncoder(PS_VOCABULARY, network.ps_max_tokens, network)
        self.bytes_encoder = MaskedEncoder(BYTES_VOCABULARY, network.bytes_max_tokens, network)
        self.ps_cross_attention = RowAttention(d_model, network.fusion_heads, batch_first=True)
        self.bytes_cross_attention = RowAttention(d_model, network.fusion_heads, batch_first=True)
        self.classifier = nn.Sequential(nn.Linear(2 * d_model, network.n_class))
        self.apply(_initialise)

    def forward(self, ps_tokens: Tensor, bytes_tokens: Tensor, bytes_types: Tensor) -> Mm4flowOutput:
        """`ps_tokens` int64 [B, P], `bytes_tokens` and `bytes_types` int64 [B, S], padded with `PAD`."""
        ps_hidden = self.ps_encoder(ps_tokens, torch.zeros_like(ps_tokens))  # [B, P, D]
        bytes_hidden = self.bytes_encoder(bytes_tokens, bytes_types)  # [B, S, D]
        hidden = torch.cat((ps_hidden, bytes_hidden), dim=1)  # [B, P + S, D]
        padding = (torch.cat((ps_tokens, bytes_tokens), dim=1) == PAD)[:, None, :]
        queries = torch.cat(
            (
                self.ps_cross_attention.query_states(ps_hidden[:, 0]),
                self.bytes_cross_attention.query_states(bytes_hidden[:, 0]),
            ),
            dim=1,
        )  # [B, 2H, D]
        scores = torch.matmul(queries, hidden.transpose(1, 2)).masked_fill(padding, float("-inf"))
        weights = scores.softmax(dim=-1)  # [B, 2H, P + S]
        ps_means, bytes_means = torch.matmul(weights, hidden).chunk(2, dim=1)  # [B, H, D] each
        embedding = torch.cat(
            (self.ps_cross_attention.mix(ps_means), self.bytes_cross_attention.mix(bytes_means)), dim=1
        )
        ps_weights, bytes_weights = weights.chunk(2, dim=1)
        return Mm4flowOutput(self.classifier(embedding), embedding, ps_weights.mean(1), bytes_weights.mean(1))


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal with deviation 0.02, zero biases and padding."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
