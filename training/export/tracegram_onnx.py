"""The ONNX graphs of a Tracegram checkpoint, built node by node: flow encoder, and aggregation with its head.

What does not depend on the input is computed here: the lone query of the decoder layer, batch normalisation (folded
into the layers beside it), and the first projection of embeddings and positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.linear_transformer import LEAST_NORMALISER
from tapline.models.packet_tokens import PADDING
from tapline.models.trace_context import table_starts
from tapline.models.tracegram import LEAST_EVIDENCE
from tapline.training.export.onnx_builder import FUSED, Graph, Weights, floats, integers, octets

NORM_EPS = 1e-5
LEAKY_SLOPE = 0.01
_LANGUAGE_MODEL = "encoder.net.net"
_DECODER = "encoder.decoder_layer"
_ONNX_GATES = (0, 3, 1, 2)
"""torch orders an LSTM's gates input, forget, cell, output; ONNX input, output, forget, cell."""

Array = NDArray[np.float32]


def encoder_graph(weights: Weights, network: TracegramNetwork, max_tokens: int) -> onnx.ModelProto:
    """The flow encoder: `tokens` int64 [flows, s], padded with 258, s up to `max_tokens`, to `features` [flows, F].

    Raises:
        ValueError: `max_tokens` goes beyond two windows of local attention, of which the graph has only the first two.
    """
    if max_tokens > 2 * network.local_attn_window_size:
        raise ValueError(f"max_tokens {max_tokens}: the graph reads at most {2 * network.local_attn_window_size}")
    graph = Graph(weights)
    states = _language_model(graph, network, max_tokens)
    _decoder(graph, network, states)
    inputs, outputs = [integers("tokens", "flows", "s")], [floats("features", "flows", network.feature_size)]
    return graph.model("tracegram_encoder", inputs, outputs)


def trace_graph(weights: Weights, network: TracegramNetwork) -> onnx.ModelProto:
    """Aggregation and head.

    Inputs: `features` float [traces, k, F], padded behind with anything, where the network reads any; `times` float
    [traces, k, 2] as `models.trace_features.trace_times` gives them; `context` uint8 [traces, k, fields] as
    `models.trace_context.trace_context` gives it, where the network reads any; `counts` int64 [traces], flows per
    trace, at least 1.
    Outputs: `logits` float [traces, classes]; `importance` float [traces, k], 0 where padded.
    """
    graph = Graph(weights)
    features, inside = _flows(graph, network), _inside(graph)
    attention, matrix = _aggregation(graph, network, features, inside)
    if network.bag:
        bag = _bag(graph, network, inside)
        logits = graph.add("Add", _head(graph, matrix), bag.logits, output="logits")
        attended = graph.add("ReduceMean", attention, axes=[1], keepdims=0)
        _importance(graph, attended, _evidence(graph, bag, logits))
    else:
        graph.add("ReduceMean", attention, axes=[1], keepdims=0, output="importance")
        _head(graph, matrix, output="logits")
    inputs = [
        *([floats("features", "traces", "k", network.feature_size)] if network.embedding_size else []),
        floats("times", "traces", "k", 2),
        *([octets("context", "traces", "k", len(network.context))] if network.context else []),
        integers("counts", "traces"),
    ]
    outputs = [floats("logits", "traces", network.n_class), floats("importance", "traces", "k")]
    return graph.model("tracegram_trace", inputs, outputs)


def _language_model(graph: Graph, network: TracegramNetwork, max_tokens: int) -> str:
    """Normalised states, [B, S, E]."""
    weights, window = graph.weights, network.local_attn_window_size
    positions = (weights[f"{_LANGUAGE_MODEL}.pos_emb.weights.0"] + weights[f"{_LANGUAGE_MODEL}.pos_emb.weights.1"])[0]
    table = weights[f"{_LANGUAGE_MODEL}.token_emb.weight"]
    places = positions[: -(-max_tokens // window)].reshape(-1, network.emb_dim)[:max_tokens]
    stack, projects = f"{_LANGUAGE_MODEL}.transformer.layers", network.emb_dim != network.dim
    if projects:
        stack = f"{_LANGUAGE_MODEL}.transformer.fn.layers"
        projection = weights[f"{_LANGUAGE_MODEL}.transformer.project_in.weight"].T
        table, places = table @ projection, places @ projection
        places = places + weights[f"{_LANGUAGE_MODEL}.transformer.project_in.bias"]
    length = graph.add("Shape", "tokens", start=1, end=2)
    place = graph.add("Slice", graph.constant("places", places), graph.integers(0), length, graph.integers(0))
    hidden = graph.add("Add", graph.add("Gather", graph.constant("table", table), "tokens"), place)
    hidden = _blocks(graph, network, stack, hidden, length)
    if projects:
        hidden = graph.linear(f"{_LANGUAGE_MODEL}.transformer.project_out", hidden)
    return graph.norm(f"{_LANGUAGE_MODEL}.norm", hidden, NORM_EPS)


def _blocks(graph: Graph, network: TracegramNetwork, stack: str, hidden: str, length: str) -> str:
    """The reversible blocks; adding to a stream and normalising it for the next half are one operator."""
    first = second = hidden
    normed = graph.norm(f"{stack}.blocks.0.f.net.norm", hidden, NORM_EPS)
    for index in range(network.depth):
        block = f"{stack}.blocks.{index}"
        change = _attention(graph, network, f"{block}.f.net.fn.fn", _shift(graph, normed), length)
        bias = graph.weight(f"{block}.f.net.fn.fn.to_out.bias")
        normed, first = _skip_norm(graph, f"{block}.g.net.norm", change, first, bias)
        change = _feed_forward(graph, f"{block}.g.net.fn.fn.fn", _shift(graph, normed))
        bias = graph.weight(f"{block}.g.net.fn.fn.fn.w2.bias")
        if index + 1 < network.depth:
            normed, second = _skip_norm(graph, f"{stack}.blocks.{index + 1}.f.net.norm", change, second, bias)
        else:
            second = graph.add("Add", graph.add("Add", change, bias), second)
    return graph.add("Mul", graph.add("Add", first, second), graph.constant("half", np.array(0.5, np.float32)))


def _skip_norm(graph: Graph, name: str, change: str, stream: str, bias: str) -> tuple[str, str]:
    """`stream + change + bias`, normalised and as it is."""
    total = f"{name}.input"
    normed = graph.add(
        "SkipLayerNormalization", change, stream, graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias"), bias,
        domain=FUSED, more_outputs=("", "", total), epsilon=NORM_EPS,
    )  # fmt: skip
    return normed, total


def _shift(graph: Graph, hidden: str) -> str:
    """The first half of the features from the position before."""
    before, here = graph.split(hidden, 2, axis=-1)
    # Padding in front and taking away behind: a negative pad.
    before = graph.add("Pad", before, graph.integers(0, 1, 0, 0, -1, 0))
    return graph.add("Concat", before, here, axis=-1)


def _feed_forward(graph: Graph, prefix: str, hidden: str) -> str:
    """Without the last bias, which goes into the sum that follows."""
    wide = graph.add("MatMul", hidden, graph.matrix(f"{prefix}.w1.weight"))
    wide = graph.add("BiasGelu", wide, graph.weight(f"{prefix}.w1.bias"), domain=FUSED)
    return graph.add("MatMul", wide, graph.matrix(f"{prefix}.w2.weight"))


def _attention(graph: Graph, network: TracegramNetwork, prefix: str, hidden: str, length: str) -> str:
    """Without the output's bias, which goes into the sum that follows."""
    local = network.n_local_attn_heads * network.dim_head
    parts = [graph.weights[f"{prefix}.to_{part}.weight"] for part in "qkv"]
    mixed = []
    if local:
        packed = graph.constant(f"{prefix}.local", np.concatenate([part[:local].T for part in parts], axis=1))
        bias = graph.constant(f"no_bias_{3 * local}", np.zeros(3 * local, np.float32))
        attended = graph.add(
            "Attention", hidden, packed, bias,
            domain=FUSED, num_heads=network.n_local_attn_heads, unidirectional=1, qkv_hidden_sizes=[local] * 3,
        )  # fmt: skip
        mixed.append(attended)
    if network.n_local_attn_heads < network.heads:
        packed = graph.constant(f"{prefix}.linear", np.concatenate([part[local:].T for part in parts], axis=1))
        mixed.append(_linear_attention(graph, network, graph.add("MatMul", hidden, packed), length))
    joined = graph.add("Concat", *mixed, axis=-1) if len(mixed) > 1 else mixed[0]
    return graph.add("MatMul", joined, graph.matrix(f"{prefix}.to_out.weight"))


def _linear_attention(graph: Graph, network: TracegramNetwork, projected: str, length: str) -> str:
    """`models.linear_transformer.LinearHeads`; `projected` [B, S, 3 H E] to [B, S, H E]."""
    n_heads, width, bucket = network.heads - network.n_local_attn_heads, network.dim_head, network.blindspot_size
    spare = graph.add("Mod", graph.add("Neg", length), graph.integers(bucket))
    pads = graph.add("Concat", graph.integers(0, 0, 0, 0), spare, graph.integers(0), axis=0)
    shape = graph.integers(0, -1, bucket, n_heads, width)
    query, key, value = (
        graph.add("Reshape", part, shape) for part in graph.split(graph.add("Pad", projected, pads), 3, axis=-1)
    )  # [B, U, bucket, H, E]
    query = graph.add("Softmax", graph.add("Transpose", query, perm=[0, 3, 1, 2, 4]), axis=-1)
    query = graph.add("Mul", query, graph.constant("query_scale", np.array(width**-0.5, np.float32)))
    key = graph.add("Exp", graph.add("Transpose", key, perm=[0, 3, 1, 4, 2]))  # [B, H, U, E, bucket]
    value = graph.add("Transpose", value, perm=[0, 3, 1, 2, 4])
    axis = graph.constant("bucket_axis", np.array(2, np.int64))
    context = graph.add("CumSum", graph.add("MatMul", key, value), axis, exclusive=1)  # [B, H, U, E, E]
    total = graph.add("CumSum", graph.add("ReduceSum", key, graph.integers(-1), keepdims=1), axis, exclusive=1)
    least = graph.constant("least_normaliser", np.array(LEAST_NORMALISER, np.float32))
    normaliser = graph.add("Max", graph.add("MatMul", query, total), least)
    mixed = graph.add("Div", graph.add("MatMul", query, context), normaliser)
    mixed = graph.add(
        "Reshape", graph.add("Transpose", mixed, perm=[0, 2, 3, 1, 4]), graph.integers(0, -1, n_heads * width)
    )
    return graph.add("Slice", mixed, graph.integers(0), length, graph.integers(1))


def _decoder(graph: Graph, network: TracegramNetwork, states: str) -> None:
    """`models.tracegram.QueryDecoder`: the states [B, S, E] to `features`."""
    query, scorers = _lone_query(graph.weights, network)
    n_heads, width = network.decoder_heads, network.emb_dim
    padding = graph.add("Unsqueeze", graph.is_token("tokens", "padding", PADDING), graph.integers(1))  # [B, 1, S]
    scores = graph.add("MatMul", states, graph.constant("scorers", scorers.T))
    scores = graph.add("Transpose", scores, perm=[0, 2, 1])  # [B, H, S]
    scores = graph.add("Where", padding, graph.minus_infinity(), scores)
    shares, attention = graph.add("Softmax", scores, axis=-1), f"{_DECODER}.multihead_attn"
    value = graph.weights[f"{attention}.in_proj_weight"][2 * width :].reshape(n_heads, -1, width).transpose(0, 2, 1)
    mixed = graph.mixed_values(shares, states, attention, value)
    mixed = graph.add("MatMul", mixed, graph.matrix(f"{attention}.out_proj.weight"))
    value_bias = graph.weights[f"{attention}.in_proj_bias"][2 * width :]
    output = graph.weights[f"{attention}.out_proj.weight"] @ value_bias + graph.weights[f"{attention}.out_proj.bias"]
    hidden = graph.add("Add", mixed, graph.constant("query", query + output))
    hidden = graph.norm(f"{_DECODER}.norm2", hidden, NORM_EPS)
    wide = graph.add("Relu", graph.linear(f"{_DECODER}.linear1", hidden))
    total = graph.add("Add", hidden, graph.linear(f"{_DECODER}.linear2", wide))
    graph.norm(f"{_DECODER}.norm3", total, NORM_EPS, output="features")


def _lone_query(weights: Weights, network: TracegramNetwork) -> tuple[Array, Array]:
    """The query behind self-attention and its norm, [E], and the vectors with which its heads score states, [H, E]."""
    width, n_heads = network.emb_dim, network.decoder_heads
    query = weights["encoder.cls_embedding.weight"][0]
    own = f"{_DECODER}.self_attn"
    value = weights[f"{own}.in_proj_weight"][2 * width :] @ query + weights[f"{own}.in_proj_bias"][2 * width :]
    query = query + weights[f"{own}.out_proj.weight"] @ value + weights[f"{own}.out_proj.bias"]
    query = (query - query.mean()) / np.sqrt(query.var() + NORM_EPS)
    query = query * weights[f"{_DECODER}.norm1.weight"] + weights[f"{_DECODER}.norm1.bias"]
    cross = f"{_DECODER}.multihead_attn"
    projected = weights[f"{cross}.in_proj_weight"][:width] @ query + weights[f"{cross}.in_proj_bias"][:width]
    keys = weights[f"{cross}.in_proj_weight"][width : 2 * width].reshape(n_heads, -1, width)
    scale = np.float32((width // n_heads) ** -0.5)
    return query, np.einsum("he,hew->hw", projected.reshape(n_heads, -1) * scale, keys)


def _flows(graph: Graph, network: TracegramNetwork) -> str:
    """The features [T, K, F] with times and context."""
    features = "features" if network.embedding_size else _context(graph, network)
    if network.context and network.embedding_size:
        features = graph.add("Add", features, _context(graph, network))
    if network.time_encoding:
        features = graph.add("Add", features, graph.linear("trace.time_linear", "times"))
    return features


def _inside(graph: Graph) -> str:
    """Where the flows of each trace are, bool [T, K]; behind them is padding."""
    k = graph.add("Shape", "times", start=1, end=2)
    zero, one = (graph.constant(f"scalar_{value}", np.array(value, np.int64)) for value in (0, 1))
    place = graph.add("Range", zero, graph.add("Squeeze", k), one)
    return graph.add("Less", place, graph.add("Unsqueeze", "counts", graph.integers(1)))


class _Bag(NamedTuple):
    """Names of outputs: `logits` [T, classes]; of every flow and field its row `places` and whether it is `told`, both
    [T, K * fields]; `counted` how often each row occurs, [T, rows]; `context` [T, K, fields]."""

    logits: str
    places: str
    told: str
    counted: str
    context: str


def _bag(graph: Graph, network: TracegramNetwork, inside: str) -> _Bag:
    """`models.tracegram.Bag`."""
    starts, rows = table_starts(network.context)
    context = graph.add("Cast", "context", to=TensorProto.INT64)
    told = graph.add(
        "And", graph.add("Cast", "context", to=TensorProto.BOOL), graph.add("Unsqueeze", inside, graph.integers(2))
    )
    flat = graph.integers(0, -1)
    places = graph.add("Reshape", graph.add("Add", context, graph.constant("context.starts", starts)), flat)
    told = graph.add("Cast", graph.add("Reshape", told, flat), to=TensorProto.FLOAT)
    shape = graph.add("Concat", graph.add("Shape", "counts"), graph.integers(rows), axis=0)
    nothing = graph.add("ConstantOfShape", shape)
    counted = graph.add("ScatterElements", nothing, places, told, axis=1, reduction="add")
    found = graph.add("Sign", counted)
    length = graph.add("ReduceL2", found, axes=[1], keepdims=1)
    length = graph.add("Max", length, graph.constant("one", np.array(1, np.float32)))
    return _Bag(graph.linear("trace.bag.linear", graph.add("Div", found, length)), places, told, counted, context)


def _evidence(graph: Graph, bag: _Bag, logits: str) -> str:
    """`models.tracegram.Bag.evidence` for the likeliest class, [T, K]."""
    name = "trace.bag.linear.weight"
    said = graph.add("ArgMax", logits, axis=1, keepdims=0)
    weights = graph.add("Transpose", graph.add("Gather", graph.matrix(name), said, axis=1), perm=[1, 0])  # [T, rows]
    weights = graph.add("Sub", weights, graph.constant("bag.mean", graph.weights[name].mean(axis=0)))
    shared = graph.add("Max", bag.counted, graph.constant("one", np.array(1, np.float32)))
    each = graph.add("GatherElements", graph.add("Div", weights, shared), bag.places, axis=1)
    each = graph.add("Reshape", graph.add("Mul", each, bag.told), graph.add("Shape", bag.context))  # [T, K, fields]
    speaks = graph.add("Relu", graph.add("ReduceSum", each, graph.integers(2), keepdims=0))
    whole = graph.add("ReduceSum", speaks, graph.integers(1), keepdims=1)
    least = graph.constant("least_evidence", np.array(LEAST_EVIDENCE, np.float32))
    return graph.add("Div", speaks, graph.add("Max", whole, least))


def _importance(graph: Graph, attended: str, evidence: str) -> None:
    """The mean of both, [T, K] each, or what is attended to where there is no evidence."""
    half = graph.constant("half", np.array(0.5, np.float32))
    spoken = graph.add("Mul", graph.add("ReduceSum", evidence, graph.integers(1), keepdims=1), half)
    rest = graph.add("Sub", graph.constant("one", np.array(1, np.float32)), spoken)
    graph.add("Add", graph.add("Mul", attended, rest), graph.add("Mul", evidence, half), output="importance")


def _aggregation(graph: Graph, network: TracegramNetwork, features: str, inside: str) -> tuple[str, str]:
    """Attention [T, Q, K] and matrix [T, Q, F] of `models.tracegram.TraceNetwork`."""
    width = network.feature_size
    flows = _lstm(graph, features)  # [K, 2, T, F]
    flows = graph.add("Reshape", graph.add("Transpose", flows, perm=[2, 0, 1, 3]), graph.integers(0, 0, width, 2))
    flows = graph.add("ReduceSum", flows, graph.integers(-1), keepdims=0)  # [T, K, F]
    inside = graph.add("Unsqueeze", inside, graph.integers(1))  # [T, 1, K]
    keys = graph.add("Transpose", graph.linear("trace.ss_wk_linear1", flows), perm=[0, 2, 1])
    queries = graph.weights["trace.emb2.weight"] / np.float32(np.sqrt(width))
    scores = graph.add("MatMul", graph.constant("queries", queries), keys)  # [T, Q, K]
    scores = graph.add("Where", inside, scores, graph.minus_infinity())
    attention = graph.add("Softmax", scores, axis=-1)
    values = graph.linear("trace.ss_wv_linear1", flows)
    return attention, graph.add("LeakyRelu", graph.add("MatMul", attention, values), alpha=LEAKY_SLOPE)


def _context(graph: Graph, network: TracegramNetwork) -> str:
    """`models.tracegram.ContextEncoder`, [T, K, F]."""
    starts = graph.constant("context.starts", table_starts(network.context)[0])
    place = graph.add("Add", graph.add("Cast", "context", to=TensorProto.INT64), starts)
    embedded = graph.add("Gather", graph.weight("trace.context.embedding.weight"), place)  # [T, K, fields, F]
    summed = graph.add("ReduceSum", embedded, graph.integers(2), keepdims=0)
    return graph.linear("trace.context.linear", graph.add("LeakyRelu", summed, alpha=LEAKY_SLOPE))


def _lstm(graph: Graph, features: str) -> str:
    """The bidirectional LSTM over [T, K, F], to [K, 2, T, F]; each direction ends where its trace does."""

    def gates(name: str) -> Array:
        both = [np.split(graph.weights[f"trace.t_lstm.{name}_l0{side}"], 4) for side in ("", "_reverse")]
        return np.stack([np.concatenate([parts[gate] for gate in _ONNX_GATES]) for parts in both])

    return graph.add(
        "LSTM",
        graph.add("Transpose", features, perm=[1, 0, 2]),
        graph.constant("lstm.input", gates("weight_ih")),
        graph.constant("lstm.recurrent", gates("weight_hh")),
        graph.constant("lstm.bias", np.concatenate((gates("bias_ih"), gates("bias_hh")), axis=1)),
        graph.add("Cast", "counts", to=TensorProto.INT32),
        direction="bidirectional",
        hidden_size=graph.weights["trace.t_lstm.weight_hh_l0"].shape[1],
    )


def _head(graph: Graph, matrix: str, output: str = "") -> str:
    """M3: the matrix [T, Q, F] to logits [T, classes]."""
    for index in (1, 2):
        scale, offset = _batch_norm(graph.weights, f"trace.c_bn{index}")
        weight = graph.weights[f"trace.c_conv{index}.weight"][:, :, 0]
        bias = graph.weights[f"trace.c_conv{index}.bias"] + weight @ offset
        matrix = graph.add("MatMul", graph.constant(f"conv{index}.weight", weight * scale), matrix)
        matrix = graph.add("Add", matrix, graph.constant(f"conv{index}.bias", bias[:, None]))
        matrix = graph.add("LeakyRelu", matrix, alpha=LEAKY_SLOPE)
    hidden = graph.add("Squeeze", matrix, graph.integers(1))  # [T, F]
    for index in (1, 2):
        scale, offset = _batch_norm(graph.weights, f"trace.c_bn{index + 2}")
        weight, bias = (graph.weights[f"trace.c_linear{index}.{part}"] for part in ("weight", "bias"))
        hidden = graph.add("MatMul", hidden, graph.constant(f"linear{index}.weight", weight.T * scale))
        hidden = graph.add("Add", hidden, graph.constant(f"linear{index}.bias", bias * scale + offset))
        hidden = graph.add("LeakyRelu", hidden, alpha=LEAKY_SLOPE)
    hidden = graph.add("LeakyRelu", graph.linear("trace.c_linear3", hidden), alpha=LEAKY_SLOPE)
    return graph.linear("trace.c_linear4", hidden, output=output)


def _batch_norm(weights: Weights, name: str) -> tuple[Array, Array]:
    """Batch normalisation with its running statistics, as factor and summand."""
    scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + np.float32(NORM_EPS))
    return scale, weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
