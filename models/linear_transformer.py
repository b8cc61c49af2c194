"""The causal transformer inside Tracegram's flow encoder, with local and linear attention heads, in torch.

Source: `LinearAttentionTransformerLM` of the package `linear-attention-transformer` 0.19.1, with `local-attention`
1.11.2, computes the same from the same weights, which keep its names; this is written anew for short sequences and for
training on a CPU. Ideas: Shen et al., "Efficient Attention", WACV 2021 (linear heads); Gomez et al., "The Reversible
Residual Network", NeurIPS 2017 (two streams, here computed plainly).
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.packet_tokens import VOCABULARY

LEAST_NORMALISER = 1e-3


class LinearHeads(nn.Module):
    """Causal linear attention over buckets: a position sees the buckets before its own, not its own (`blindspot`).

    Holds no weights; a module so that its bucket size has one place.
    """

    def __init__(self, bucket: int) -> None:
        super().__init__()
        self.bucket = bucket

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, H, S, E] each to [B, H, S, E]; zero in the first bucket, which sees nothing."""
        length, size, width = query.shape[2], self.bucket, query.shape[3]
        n_seen = (length - 1) // size  # the last bucket is seen by none, the first sees none
        if n_seen < 1:
            return torch.zeros_like(value)
        query = query[:, :, size:].softmax(dim=-1) * width**-0.5
        query = functional.pad(query, (0, 0, 0, (n_seen + 1) * size - length))
        key, value = key[:, :, : n_seen * size].exp(), value[:, :, : n_seen * size]
        query, key, value = (
            states.reshape(*states.shape[:2], n_seen, size, width) for states in (query, key, value)
        )  # [B, H, U, bucket, E]
        context = (key.transpose(-1, -2) @ value).cumsum(2)  # [B, H, U, E, E]
        total = key.sum(3).cumsum(2)  # [B, H, U, E]
        normaliser = (query @ total.unsqueeze(-1)).clamp(min=LEAST_NORMALISER)  # [B, H, U, bucket, 1]
        mixed = (query @ context / normaliser).flatten(2, 3)[:, :, : length - size]
        return functional.pad(mixed, (0, 0, size, 0))


class LocalHeads(nn.Module):
    """Causal softmax attention within a window and the one before it; holds no weights.

    Published training also drops attention weights. That would forbid the fused kernel on a CPU and double the time of
    a step, so here dropout acts on what leaves the attention only.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, H, S, E] each to [B, H, S, E]."""
        length, window = query.shape[2], self.window
        if length <= 2 * window:  # then the window and the one before it are all there is
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        n_windows = -(-length // window)
        spare = n_windows * window - length
        query = functional.pad(query, (0, 0, 0, spare))
        query = query.reshape(*query.shape[:2], n_windows, window, -1)
        key, value = (
            functional.pad(states, (0, 0, window, spare)).unfold(2, 2 * window, window).transpose(-1, -2)
            for states in (key, value)
        )  # [B, H, windows, 2 window, E]
        position = torch.arange(window, device=query.device)
        behind = torch.arange(2 * window, device=query.device) - window
        mask = (behind <= position[:, None]).repeat(n_windows, 1, 1)  # [windows, window, 2 window]
        mask[0, :, :window] = False
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.flatten(2, 3)[:, :, :length]


class SelfAttention(nn.Module):
    """The first heads attend locally, the others linearly."""

    def __init__(self, network: TracegramNetwork, dropout: float) -> None:
        super().__init__()
        inner = network.heads * network.dim_head
        self.n_heads, self.n_local = network.heads, network.n_local_attn_heads
        self.local_heads = LocalHeads(network.local_attn_window_size)
        self.linear_heads = LinearHeads(network.blindspot_size)
        self.to_q = nn.Linear(network.dim, inner, bias=False)
        self.to_k = nn.Linear(network.dim, inner, bias=False)
        self.to_v = nn.Linear(network.dim, inner, bias=False)
        self.to_out = nn.Linear(inner, network.dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        states = [
            linear(hidden).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, H, S, E]
            for linear in (self.to_q, self.to_k, self.to_v)
        ]
        mixed = []
        if self.n_local:
            mixed.append(self.local_heads(*(each[:, : self.n_local] for each in states)))
        if self.n_local < self.n_heads:
            mixed.append(self.linear_heads(*(each[:, self.n_local :] for each in states)))
        joined = torch.cat(mixed, dim=1).transpose(1, 2).flatten(-2)
        return self.dropout(self.to_out(joined))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two layers, four times as wide between; the published chunks of it change nothing but memory."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, 4 * dim)
        self.w2 = nn.Linear(4 * dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D], exact GELU (`ff_glu` does not reach this layer in the published package)."""
        return self.w2(functional.gelu(self.w1(hidden)))  # type: ignore[no-any-return]


class Named(nn.Module):
    """Passes on to `fn`: a level of the published weight names."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, hidden: Tensor) -> Tensor:
        """What `fn` makes of it."""
        return self.fn(hidden)  # type: ignore[no-any-return]


class ShiftTokens(Named):
    """The first half of the features comes from the position before."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        before, here = hidden.chunk(2, dim=-1)
        return self.fn(torch.cat((functional.pad(before, (0, 0, 1, -1)), here), dim=-1))  # type: ignore[no-any-return]


class PreNorm(nn.Module):
    """Normalises before `fn`."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.fn(self.norm(hidden))  # type: ignore[no-any-return]


_Inner = TypeVar("_Inner", bound=nn.Module)


class Net(nn.Module, Generic[_Inner]):
    """Passes on to `net`: a level of the published weight names."""

    net: _Inner

    def __init__(self, net: _Inner) -> None:
        super().__init__()
        self.net = net

    def forward(self, hidden: Tensor) -> Tensor:
        """What `net` makes of it."""
        return self.net(hidden)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A reversible block, computed plainly: attention changes one stream by the other, then the other way round."""

    def __init__(self, network: TracegramNetwork, dropout: float) -> None:
        super().__init__()
        self.f = Net(PreNorm(network.dim, ShiftTokens(SelfAttention(network, dropout))))
        self.g = Net(PreNorm(network.dim, ShiftTokens(Named(FeedForward(network.dim)))))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams [B, S, D]."""
        first = first + self.f(second)
        return first, second + self.g(first)


class Blocks(nn.Module):
    """The stack of blocks; the mean of the two streams leaves it."""

    def __init__(self, network: TracegramNetwork, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(network, dropout) for _ in range(network.depth))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        first = second = hidden
        for block in self.blocks:
            first, second = block(first, second)
        return (first + second) / 2


class Transformer(nn.Module):
    """The stack under its published name."""

    def __init__(self, network: TracegramNetwork, dropout: float) -> None:
        super().__init__()
        self.layers = Blocks(network, dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.layers(hidden)  # type: ignore[no-any-return]


class ProjectInOut(nn.Module):
    """The stack between two projections, where the embedding has another width than the stack."""

    def __init__(self, network: TracegramNetwork, dropout: float) -> None:
        super().__init__()
        self.project_in = nn.Linear(network.emb_dim, network.dim)
        self.fn = Transformer(network, dropout)
        self.project_out = nn.Linear(network.dim, network.emb_dim)

    def forward(self, embedded: Tensor) -> Tensor:
        """[B, S, E] to [B, S, E]."""
        return self.project_out(self.fn(self.project_in(embedded)))  # type: ignore[no-any-return]


class AxialPositions(nn.Module):
    """Positions as the sum of a vector for the window and one for the place in it."""

    def __init__(self, network: TracegramNetwork) -> None:
        super().__init__()
        n_windows, window = network.max_seq_len // network.local_attn_window_size, network.local_attn_window_size
        self.weights = nn.ParameterList(
            [torch.randn(1, n_windows, 1, network.emb_dim), torch.randn(1, 1, window, network.emb_dim)]
        )

    def forward(self, length: int) -> Tensor:
        """The first `length` positions, [S, E]."""
        coarse, fine = self.weights
        n_windows = -(-length // fine.shape[2])
        positions: Tensor = coarse[:, :n_windows] + fine
        return positions.flatten(0, 2)[:length]


class LanguageModel(nn.Module):
    """Embeddings, the stack, and the next-token head."""

    def __init__(self, network: TracegramNetwork, dropout: float) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(VOCABULARY, network.emb_dim)
        self.pos_emb = AxialPositions(network)
        wide = ProjectInOut if network.emb_dim != network.dim else Transformer
        self.transformer = wide(network, dropout)
        self.norm = nn.LayerNorm(network.emb_dim)
        self.out = nn.Linear(network.emb_dim, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens` int64 [B, S] to normalised states [B, S, E]. Causal, so padding behind changes nothing before it."""
        embedded = self.token_emb(tokens) + self.pos_emb(tokens.shape[1])
        return self.norm(self.transformer(embedded))  # type: ignore[no-any-return]
