"""The Tracegram networks in torch, with the published weight names: flow encoder (M1), aggregation (M2) and head (M3).

Source: Qu et al., "Tracegram: Framing Trace-Level Traffic Analysis with Temporally-Aware Multiple Instance Learning",
USENIX Security 2026. The transformer inside the flow encoder is `linear_transformer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tapline.models.checkpoint import Mm4flowNetwork, TracegramNetwork
from tapline.models.linear_transformer import LanguageModel, Net
from tapline.models.mm4flow import Mm4flow, RowAttention
from tapline.models.packet_tokens import PADDING
from tapline.models.trace_context import ABSENT, Field, table_starts

DROPOUT = 0.1
CONTEXT_DEVIATION = 0.1
LEAST_EVIDENCE = 1e-6
"""Evidence below which there is none to share."""

HEAD_WIDTHS = (100, 50)
"""Widths of the head's hidden layers, as published."""

_FOR_TRAINING = (
    "encoder.out.", "encoder.net.net.out.",
    "encoder.classifier.", "encoder.ps_encoder.cls.", "encoder.bytes_encoder.cls.",
)  # fmt: skip


class QueryDecoder(nn.Module):
    """torch's `TransformerDecoderLayer` (post-norm, ReLU) for a single learned query, with its weight names.

    A lone query attends to itself wholly, and is the same for every flow, so self-attention is one constant vector.
    """

    def __init__(self, network: TracegramNetwork, dropout: float) -> None:
        super().__init__()
        width = network.emb_dim
        self.self_attn = RowAttention(width, network.decoder_heads, batch_first=True)
        self.multihead_attn = RowAttention(width, network.decoder_heads, batch_first=True)
        self.linear1 = nn.Linear(width, network.decoder_ff)
        self.linear2 = nn.Linear(network.decoder_ff, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, states: Tensor, padding: Tensor) -> Tensor:
        """`query` [1, E], `states` [B, S, E], `padding` bool [B, S], True where not to attend; gives [B, E]."""
        alone = self.self_attn.mix(query.unsqueeze(1).expand(-1, self.self_attn.num_heads, -1))
        query = self.norm1(query + self.dropout(alone))  # [1, E]
        scorers = self.multihead_attn.query_states(query)[0]  # [H, E]
        scores = (states @ scorers.t()).transpose(1, 2).masked_fill(padding.unsqueeze(1), float("-inf"))  # [B, H, S]
        mixed = self.multihead_attn.mix(scores.softmax(dim=-1) @ states)
        hidden = self.norm2(query + self.dropout(mixed))
        wide = self.dropout(functional.relu(self.linear1(hidden)))
        return self.norm3(hidden + self.dropout(self.linear2(wide)))  # type: ignore[no-any-return]


class FlowOutput(NamedTuple):
    """`features` float [B, E]; `logits` of the flow classes [B, C], None without; `states` [B, S, E] behind them."""

    features: Tensor
    logits: Tensor | None
    states: Tensor


class FlowEncoder(nn.Module):
    """M1: a flow's tokens to its feature. `flow_classes` adds the head of supervised tuning, for training only."""

    def __init__(self, network: TracegramNetwork, flow_classes: int = 0, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.net = Net(LanguageModel(network, dropout))
        self.cls_embedding = nn.Embedding(1, network.emb_dim)
        self.decoder_layer = QueryDecoder(network, dropout)
        self.out = nn.Linear(network.emb_dim, flow_classes) if flow_classes else None

    def forward(self, tokens: Tensor) -> FlowOutput:
        """`tokens` int64 [B, S], padded with `PADDING` behind, which changes nothing."""
        states = self.net(tokens)
        features = self.decoder_layer(self.cls_embedding.weight, states, tokens == PADDING)
        logits = self.out(functional.leaky_relu(features)) if self.out is not None else None
        return FlowOutput(features, logits, states)

    def next_token_losses(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Cross-entropy of every token after the first given those before it, 1-D, padding left out.

        `states` [B, S, E] are those of `tokens`. Only real positions meet the vocabulary.
        """
        wanted = tokens[:, 1:]
        is_real = wanted != PADDING
        logits = self.net.net.out(states[:, :-1][is_real])
        return functional.cross_entropy(logits, wanted[is_real], reduction="none")


class TraceOutput(NamedTuple):
    """`logits` float [T, C]; `importance` of each flow [T, K], sums to 1 over a trace; `attention` [T, queries, K],
    rows sum to 1; `matrix` [T, queries, F].

    Importance is the attention that a flow receives, averaged over the queries; where there is a bag, the mean of that
    and of the flow's share of what speaks for the likeliest class there (`Bag.evidence`).
    """

    logits: Tensor
    importance: Tensor
    attention: Tensor
    matrix: Tensor


class ContextEncoder(nn.Module):
    """What a flow's context adds to its feature: the sum of an embedding of each value, through one hidden layer."""

    starts: Tensor

    def __init__(self, fields: Sequence[Field], width: int) -> None:
        super().__init__()
        starts, rows = table_starts(fields)
        self.embedding = nn.EmbeddingBag(rows, width, mode="sum")
        nn.init.normal_(self.embedding.weight, std=CONTEXT_DEVIATION)
        self.linear = nn.Linear(width, width)
        self.register_buffer("starts", torch.from_numpy(starts), persistent=False)

    def forward(self, context: Tensor) -> Tensor:
        """`context` integers [..., fields] as `models.trace_context.trace_context` gives them; gives [..., width]."""
        places = (context.long() + self.starts).flatten(0, -2)
        summed = self.embedding(places).unflatten(0, context.shape[:-1])
        return self.linear(functional.leaky_relu(summed))  # type: ignore[no-any-return]


class Bag(nn.Module):
    """Logits from which values of the context occur in a trace, in whatever order and however often: one weight for
    each value and class."""

    starts: Tensor

    def __init__(self, network: TracegramNetwork) -> None:
        super().__init__()
        starts, rows = table_starts(network.context)
        self.linear = nn.Linear(rows, network.n_class)
        self.register_buffer("starts", torch.from_numpy(starts), persistent=False)

    def occurrences(self, context: Tensor, counts: Tensor) -> Tensor:
        """What the weights are of, float [T, rows], each row of length 1: `context` integers [T, K, fields], `counts`
        int64 [T]; what is absent, and what lies behind the last flow, does not count."""
        return functional.normalize(self._counted(context, counts).sign(), eps=1.0)  # 1 or more, unless nothing is told

    def forward(self, context: Tensor, counts: Tensor) -> Tensor:
        """As `occurrences`; gives [T, classes]."""
        return self.linear(self.occurrences(context, counts))  # type: ignore[no-any-return]

    def evidence(self, context: Tensor, counts: Tensor, said: Tensor) -> Tensor:
        """What speaks for the classes `said` int64 [T] against the mean of all, by flow: shares [T, K] that sum to 1,
        or 0 where nothing speaks for it. A value counts in equal parts for all flows that have it."""
        places, told = self._places(context), self._told(context, counts)
        weights = (self.linear.weight - self.linear.weight.mean(dim=0))[said]  # [T, rows]
        shared = self._counted(context, counts).clamp(min=1.0)
        each = (weights / shared).gather(1, places.flatten(1)).reshape(places.shape)
        speaks = (each * told).sum(dim=2).clamp(min=0.0)  # [T, K]
        return speaks / speaks.sum(dim=1, keepdim=True).clamp(min=LEAST_EVIDENCE)

    def _places(self, context: Tensor) -> Tensor:
        return context.long() + self.starts

    def _told(self, context: Tensor, counts: Tensor) -> Tensor:
        """What is not absent and no padding, bool [T, K, fields]."""
        inside = torch.arange(context.shape[1], device=context.device) < counts.to(context.device)[:, None]
        return (context != ABSENT) & inside[..., None]

    def _counted(self, context: Tensor, counts: Tensor) -> Tensor:
        """How often each value occurs, float [T, rows]."""
        summed = self.linear.weight.new_zeros(len(context), self.linear.in_features)
        told = self._told(context, counts).flatten(1).to(summed.dtype)
        return summed.scatter_add_(1, self._places(context).flatten(1), told)


class TraceNetwork(nn.Module):
    """M2 and M3: the features of a trace's flows, in order, to class logits and the attention on each flow."""

    def __init__(self, network: TracegramNetwork) -> None:
        super().__init__()
        width, queries, (hidden, last) = network.feature_size, network.queries, HEAD_WIDTHS
        self.time_linear = nn.Linear(2, width) if network.time_encoding else None
        self.embedding_size = network.embedding_size
        self.context = ContextEncoder(network.context, width) if network.context else None
        self.bag = Bag(network) if network.bag else None
        self.t_lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.emb2 = nn.Embedding(queries, width)
        self.ss_wk_linear1, self.ss_wv_linear1 = nn.Linear(width, width), nn.Linear(width, width)
        self.c_bn1, self.c_bn2 = nn.BatchNorm1d(queries), nn.BatchNorm1d(queries)
        self.c_conv1, self.c_conv2 = nn.Conv1d(queries, queries, 1), nn.Conv1d(queries, 1, 1)
        self.c_linear1, self.c_bn3 = nn.Linear(width, hidden), nn.BatchNorm1d(hidden)
        self.c_linear2, self.c_bn4 = nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden)
        self.c_linear3, self.c_linear4 = nn.Linear(hidden, last), nn.Linear(last, network.n_class)

    def forward(self, features: Tensor, times: Tensor, counts: Tensor, context: Tensor | None = None) -> TraceOutput:
        """Score T traces of up to K flows each.

        `features` float [T, K, F], flows in order, padding behind, [T, K, 0] where the context says all; `times` float
        [T, K, 2], of each flow log(1 + seconds since the start of the previous one) and log(1 + duration in seconds),
        read with time encoding only;
        `counts` int64 [T], flows per trace, on the CPU; `context` integers [T, K, fields], where the network reads any.
        """
        if self.context is not None:
            if context is None:
                raise ValueError("the network reads the context of flows: give it")
            told = self.context(context)
            features = features + told if self.embedding_size else told
        if self.time_linear is not None:
            features = features + self.time_linear(times)
        packed = pack_padded_sequence(features, counts, batch_first=True, enforce_sorted=False)
        mixed, _ = pad_packed_sequence(self.t_lstm(packed)[0], batch_first=True, total_length=features.shape[1])
        flows = mixed.view(*features.shape, 2).sum(-1)  # [T, K, F]: neighbouring pairs of both directions' outputs
        padding = torch.arange(features.shape[1], device=features.device) >= counts.to(features.device)[:, None]
        scores = self.emb2.weight @ self.ss_wk_linear1(flows).transpose(1, 2) / math.sqrt(flows.shape[-1])
        attention = scores.masked_fill(padding[:, None], float("-inf")).softmax(dim=-1)  # [T, Q, K]
        matrix = functional.leaky_relu(attention @ self.ss_wv_linear1(flows))  # [T, Q, F]
        logits, importance = self.classify(matrix), attention.mean(dim=1)
        if self.bag is not None and context is not None:
            logits = logits + self.bag(context, counts)
            evidence = self.bag.evidence(context, counts, logits.argmax(dim=1))
            spoken = evidence.sum(dim=1, keepdim=True) / 2  # a half, or nothing
            importance = importance * (1 - spoken) + evidence / 2
        return TraceOutput(logits, importance, attention, matrix)

    def classify(self, matrix: Tensor) -> Tensor:
        """M3: [T, Q, F] to logits [T, C]."""
        hidden = functional.leaky_relu(self.c_conv1(self.c_bn1(matrix)))
        hidden = functional.leaky_relu(self.c_conv2(self.c_bn2(hidden))).squeeze(1)  # [T, F]
        hidden = functional.leaky_relu(self.c_bn3(self.c_linear1(hidden)))
        hidden = functional.leaky_relu(self.c_bn4(self.c_linear2(hidden)))
        return self.c_linear4(functional.leaky_relu(self.c_linear3(hidden)))  # type: ignore[no-any-return]


class Tracegram(nn.Module):
    """Both networks, under the names of the checkpoint: `encoder` and `trace`.

    `encoder` is M1, or the checkpoint's own MM4flow where `mm4flow` gives its sizes: a flow's feature is then its
    embedding. It is None where a flow checkpoint gives the embeddings.
    """

    def __init__(
        self,
        network: TracegramNetwork,
        flow_classes: int = 0,
        dropout: float = DROPOUT,
        mm4flow: Mm4flowNetwork | None = None,
    ) -> None:
        super().__init__()
        self.encoder: FlowEncoder | Mm4flow | None = None
        if network.encoder == "tracegram":
            self.encoder = FlowEncoder(network, flow_classes, dropout)
        elif mm4flow is not None:
            self.encoder = Mm4flow(mm4flow)
        self.trace = TraceNetwork(network)


def is_for_training(name: str) -> bool:
    """Whether a weight is for training only: token heads, classifiers of flows, the counters of normalisation."""
    return name.startswith(_FOR_TRAINING) or name.endswith(".num_batches_tracked")
