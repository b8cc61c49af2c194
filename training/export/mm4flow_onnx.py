"""The ONNX graphs of MM4flow, with its classifier or the embedding alone, built node by node from its weights with
ONNX Runtime's fused operators.

Written out by hand rather than traced: the graph is small, its operators are then the fused ones whatever the version
of an exporter, and every name in it is ours.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import PAD
from tapline.training.export.onnx_builder import FUSED, Graph, Weights, floats, integers

LAYER_NORM_EPS = 1e-12
INPUTS = [
    integers("ps_tokens", "flows", "ps"),
    integers("bytes_tokens", "flows", "bytes"),
    integers("bytes_types", "flows", "bytes"),
]


def mm4flow_graph(weights: Weights, network: Mm4flowNetwork) -> onnx.ModelProto:
    """The model as ONNX.

    Inputs int64: `ps_tokens` [flows, ps], `bytes_tokens` and `bytes_types` [flows, bytes], padded with 0.
    Outputs float32: `logits` [flows, classes], `embedding` [flows, 2 width], `ps_attention` and `bytes_attention`
    [flows, ps + bytes], as in `models.mm4flow.Mm4flowOutput`.
    """
    graph = Graph(weights)
    _embedding(graph, network, "embedding", ("ps_attention", "bytes_attention"))
    graph.linear("classifier.0", "embedding", output="logits")
    outputs = [
        floats("logits", "flows", network.n_class),
        floats("embedding", "flows", 2 * network.d_model),
        floats("ps_attention", "flows", "tokens"),
        floats("bytes_attention", "flows", "tokens"),
    ]
    return graph.model("mm4flow", INPUTS, outputs)


def features_graph(weights: Weights, network: Mm4flowNetwork) -> onnx.ModelProto:
    """The encoder of flows that a trace checkpoint brings: inputs as of `mm4flow_graph`, and the embedding as
    `features` float32 [flows, 2 width]. `weights` bear the names of `models.mm4flow.Mm4flow`.
    """
    graph = Graph(weights)
    _embedding(graph, network, "features")
    return graph.model("mm4flow_encoder", INPUTS, [floats("features", "flows", 2 * network.d_model)])


def _embedding(graph: Graph, network: Mm4flowNetwork, output: str, attentions: tuple[str, str] = ("", "")) -> None:
    """Both encoders and their fusion to `output` [B, 2D]; `attentions` names those of the `[CLS]` rows, if wanted."""
    ps_hidden = _encoder(graph, "ps_encoder", "ps_tokens", None, network)
    bytes_hidden = _encoder(graph, "bytes_encoder", "bytes_tokens", "bytes_types", network)
    hidden = graph.add("Concat", ps_hidden, bytes_hidden, axis=1)  # [B, P + S, D]
    tokens = graph.add("Concat", "ps_tokens", "bytes_tokens", axis=1)
    padding = graph.add("Unsqueeze", graph.is_token(tokens, "pad", PAD), graph.integers(1))  # [B, 1, P + S]
    mixed = [
        _fusion(graph, "ps_cross_attention", ps_hidden, hidden, padding, attentions[0], network),
        _fusion(graph, "bytes_cross_attention", bytes_hidden, hidden, padding, attentions[1], network),
    ]
    graph.add("Concat", *mixed, axis=1, output=output)


def _encoder(graph: Graph, name: str, tokens: str, types: str | None, network: Mm4flowNetwork) -> str:
    """One BERT encoder, [B, S] tokens to [B, S, D]."""
    prefix = f"{name}.bert"
    mask = graph.add("Not", graph.is_token(tokens, "pad", PAD))
    mask = graph.add("Cast", mask, to=TensorProto.INT32)
    hidden = _embeddings(graph, f"{prefix}.embeddings", tokens, types)
    for i in range(network.n_layer):
        layer = f"{prefix}.encoder.layer.{i}"
        attended = graph.add(
            "Attention", hidden, *_packed_projection(graph, f"{layer}.attention.self"), mask,
            domain=FUSED, num_heads=network.n_head,
        )  # fmt: skip
        hidden = _add_norm(graph, f"{layer}.attention.output", attended, hidden)
        wide = graph.add("MatMul", hidden, graph.matrix(f"{layer}.intermediate.dense.weight"))
        wide = graph.add("BiasGelu", wide, graph.weight(f"{layer}.intermediate.dense.bias"), domain=FUSED)
        hidden = _add_norm(graph, f"{layer}.output", wide, hidden)
    return hidden


def _embeddings(graph: Graph, prefix: str, tokens: str, types: str | None) -> str:
    words = graph.add("Gather", graph.weight(f"{prefix}.word_embeddings.weight"), tokens)
    length = graph.add("Shape", tokens, start=1, end=2)
    positions = graph.add(
        "Slice", graph.weight(f"{prefix}.position_embeddings.weight"), graph.integers(0), length, graph.integers(0)
    )
    total = graph.add("Add", words, positions)
    kinds = graph.weights[f"{prefix}.token_type_embeddings.weight"]
    if types is None:
        kind = graph.constant(f"{prefix}.token_type_embeddings.first", kinds[0])
    else:
        kind = graph.add("Gather", graph.weight(f"{prefix}.token_type_embeddings.weight"), types)
    return graph.norm(f"{prefix}.LayerNorm", graph.add("Add", total, kind), LAYER_NORM_EPS)


def _packed_projection(graph: Graph, prefix: str) -> tuple[str, str]:
    """Query, key and value projections side by side: [D, 3D] and [3D]."""
    parts = [f"{prefix}.{part}" for part in ("query", "key", "value")]
    return (
        graph.constant(f"{prefix}.weight", np.concatenate([graph.weights[f"{p}.weight"].T for p in parts], axis=1)),
        graph.constant(f"{prefix}.bias", np.concatenate([graph.weights[f"{p}.bias"] for p in parts])),
    )


def _add_norm(graph: Graph, prefix: str, hidden: str, residual: str) -> str:
    dense = graph.add("MatMul", hidden, graph.matrix(f"{prefix}.dense.weight"))
    norm = f"{prefix}.LayerNorm"
    return graph.add(
        "SkipLayerNormalization", dense, residual, graph.weight(f"{norm}.weight"), graph.weight(f"{norm}.bias"),
        graph.weight(f"{prefix}.dense.bias"), domain=FUSED, epsilon=LAYER_NORM_EPS,
    )  # fmt: skip


def _fusion(
    graph: Graph, name: str, hidden: str, both: str, padding: str, attention: str, network: Mm4flowNetwork
) -> str:
    """The `[CLS]` row of one fusion attention, as `models.mm4flow.RowAttention` computes it; gives [B, D]."""
    d_model, n_head = network.d_model, network.fusion_heads
    query, key, value = np.split(graph.weights[f"{name}.in_proj_weight"], 3)
    query_bias, _, value_bias = np.split(graph.weights[f"{name}.in_proj_bias"], 3)
    scale = np.float32(1 / np.sqrt(d_model // n_head))
    row = graph.add("Gather", hidden, graph.constant("row", np.array(0, np.int64)), axis=1)  # [B, D]
    row = graph.add("MatMul", row, graph.constant(f"{name}.query", query.T * scale))
    row = graph.add("Add", row, graph.constant(f"{name}.query_bias", query_bias * scale))
    row = graph.add("Reshape", row, graph.integers(0, n_head, 1, d_model // n_head))  # [B, H, 1, D/H]
    states = graph.add("MatMul", row, graph.constant(f"{name}.key", key.reshape(n_head, -1, d_model)))
    states = graph.add("Squeeze", states, graph.integers(2))  # [B, H, D]
    scores = graph.add("MatMul", states, graph.add("Transpose", both, perm=[0, 2, 1]))  # [B, H, P + S]
    scores = graph.add("Where", padding, graph.minus_infinity(), scores)
    shares = graph.add("Softmax", scores, axis=-1)
    if attention:
        graph.add("ReduceMean", shares, axes=[1], keepdims=0, output=attention)
    values = value.reshape(n_head, -1, d_model).transpose(0, 2, 1)  # [H, D, D/H]
    mixed = graph.mixed_values(shares, both, name, values)
    mixed = graph.add("Add", mixed, graph.constant(f"{name}.value_bias", value_bias))
    return graph.linear(f"{name}.out_proj", mixed)
