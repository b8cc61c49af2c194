"""Collects the nodes and weights of an ONNX graph written by hand; which nodes is for each network's file to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9
FUSED = "com.microsoft"
"""Domain of ONNX Runtime's fused operators."""

Weights = Mapping[str, NDArray[np.float32]]


def floats(name: str, *dimensions: int | str) -> onnx.ValueInfoProto:
    """A float32 input or output of a graph; dimensions that vary have a name."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dimensions)


def integers(name: str, *dimensions: int | str) -> onnx.ValueInfoProto:
    """The same of int64."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, dimensions)


def octets(name: str, *dimensions: int | str) -> onnx.ValueInfoProto:
    """The same of uint8."""
    return helper.make_tensor_value_info(name, TensorProto.UINT8, dimensions)


class Graph:
    """Collects nodes and initialisers; every `add` returns the name of the node's output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def add(
        self,
        operator: str,
        *inputs: str,
        domain: str = "",
        output: str = "",
        more_outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Append a node; gives its first output, which is named anew unless `output` names it."""
        self._count += 1
        output = output or f"{operator.lower()}_{self._count}"
        self.nodes.append(
            helper.make_node(operator, inputs, [output, *more_outputs], name=output, domain=domain, **attributes)
        )
        return output

    def split(self, tensor: str, parts: int, axis: int) -> list[str]:
        """Equal parts of a tensor along an axis."""
        self._count += 1
        outputs = [f"split_{self._count}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [tensor], outputs, name=outputs[0], axis=axis))
        return outputs

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Store an array once under `name`."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def weight(self, name: str) -> str:
        """A weight as it is stored."""
        return self.constant(name, self.weights[name])

    def matrix(self, name: str) -> str:
        """A linear layer's weight, transposed to [in, out]."""
        return self.constant(f"{name}.transposed", self.weights[name].T)

    def integers(self, *values: int) -> str:
        """A small int64 vector."""
        return self.constant("int_" + "_".join(map(str, values)), np.array(values, np.int64))

    def linear(self, name: str, hidden: str, output: str = "") -> str:
        """A linear layer with its bias."""
        hidden = self.add("MatMul", hidden, self.matrix(f"{name}.weight"))
        return self.add("Add", hidden, self.weight(f"{name}.bias"), output=output)

    def norm(self, name: str, hidden: str, epsilon: float, output: str = "") -> str:
        """Layer normalisation over the last axis."""
        return self.add(
            "LayerNormalization", hidden, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"),
            axis=-1, epsilon=epsilon, output=output,
        )  # fmt: skip

    def is_token(self, tokens: str, name: str, token: int) -> str:
        """Where tokens [B, S] are this one, bool [B, S]."""
        return self.add("Equal", tokens, self.constant(name, np.array(token, np.int64)))

    def minus_infinity(self) -> str:
        """The score of what is not to be attended to."""
        return self.constant("minus_infinity", np.array(-np.inf, np.float32))

    def mixed_values(self, shares: str, states: str, name: str, value: NDArray[np.float32]) -> str:
        """What H heads read of states [B, S, D] by their shares [B, H, S]; `value` [H, D, D/H] projects.
        Gives [B, D]."""
        means = self.add("Unsqueeze", self.add("MatMul", shares, states), self.integers(2))  # [B, H, 1, D]
        mixed = self.add("MatMul", means, self.constant(f"{name}.value", value))
        return self.add("Reshape", mixed, self.integers(0, value.shape[1]))

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The checked model of everything added so far."""
        body = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
        model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tapline")
        onnx.checker.check_model(model)
        return model
