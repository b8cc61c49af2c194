"""The int8 form of a checkpoint's ONNX file, and what it costs in accuracy beside the whole one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from tapline.models.checkpoint import ONNX, ONNX_INT8, Checkpoint, Mm4flowNetwork
from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.models.verdict import context_terms, flow_probabilities
from tapline.training.data.batches import plain_batches
from tapline.training.data.store import StoredSamples
from tapline.training.export.mm4flow_onnx import mm4flow_graph
from tapline.training.loop.scores import macro_f1

Logits = NDArray[np.float32]


class Int8Comparison(msgspec.Struct, frozen=True):
    """The quantised model beside the whole one on the same labelled flows; `agreement`: share with the same label."""

    flows: int
    macro_f1: float
    macro_f1_int8: float
    agreement: float
    largest_logit_difference: float
    size_bytes: int
    size_bytes_int8: int


def quantise(whole: Path, quantised: Path) -> None:
    """Weights of matrix products as int8, activations quantised as they come (ONNX Runtime's dynamic quantisation)."""
    model = onnx.load_model(whole)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"  # nodes are left out by name, and the name of many is empty
    logging.getLogger().disabled, before = True, logging.getLogger().disabled  # it advises on the root logger
    try:
        quantize_dynamic(
            model,
            quantised,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Attention"],
            nodes_to_exclude=_stacked_products(model.graph),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # behind fused operators no type is inferred
        )
    finally:
        logging.getLogger().disabled = before


def _stacked_products(graph: onnx.GraphProto) -> list[str]:
    """Matrix products with a stack of matrices, one for each head: ONNX Runtime has no int8 form of them by channel."""
    flat = {tensor.name for tensor in graph.initializer if len(tensor.dims) <= 2}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not flat & set(node.input)]


def compare_int8(directory: Path, samples: StoredSamples, checkpoint: Checkpoint) -> Int8Comparison:
    """Run both ONNX files of a checkpoint directory over labelled flows, each with the checkpoint's context."""
    index = {label: number for number, label in enumerate(checkpoint.labels)}
    truth = np.array([index.get(name, -1) for name in samples.label_names], np.int64)[samples.labels]
    whole, small = (onnx_logits(directory / name, samples.flows, checkpoint.features) for name in (ONNX, ONNX_INT8))
    terms = context_terms(checkpoint)
    said, said_small = (
        flow_probabilities(logits, samples.flows, checkpoint, terms).argmax(1) for logits in (whole, small)
    )
    return Int8Comparison(
        flows=len(truth),
        macro_f1=macro_f1(truth, said, len(index), 1),
        macro_f1_int8=macro_f1(truth, said_small, len(index), 1),
        agreement=float((said == said_small).mean()),
        largest_logit_difference=float(np.abs(whole - small).max()),
        size_bytes=(directory / ONNX).stat().st_size,
        size_bytes_int8=(directory / ONNX_INT8).stat().st_size,
    )


def int8_logits(model: Mm4flow, network: Mm4flowNetwork, flows: Sequence[Flow], features: Mm4flowFeatures) -> Logits:
    """What the quantised form of a model says of flows, in order, float32 [n, classes]."""
    weights = {name: value.cpu().numpy() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / ONNX, Path(folder) / ONNX_INT8
        onnx.save_model(mm4flow_graph(weights, network), whole)
        quantise(whole, small)
        return onnx_logits(small, flows, features)


def onnx_logits(model: Path, flows: Sequence[Flow], features: Mm4flowFeatures) -> Logits:
    """Logits of every flow in order by one ONNX file, float32 [n, classes]."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows: list[NDArray[np.int64]] = []
    logits: list[NDArray[np.float32]] = []
    for batch in plain_batches(flows, 64, features):
        inputs = {name: getattr(batch, name).numpy() for name in ("ps_tokens", "bytes_tokens", "bytes_types")}
        rows.append(batch.rows)
        logits.append(session.run(["logits"], inputs)[0])
    order = np.argsort(np.concatenate(rows))
    return np.asarray(np.concatenate(logits)[order])
