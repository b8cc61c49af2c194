"""Checkpoints that somebody else made: files changed, and recorded in the manifest as if they belonged there."""

import hashlib

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tapline.models.checkpoint import MANIFEST


def edit(directory, **changes):
    """Change fields of a manifest."""
    path = directory / MANIFEST
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | changes))


def record(directory, *names):
    """Write the size and hash that files have now into the manifest."""
    files = msgspec.json.decode((directory / MANIFEST).read_bytes())["files"]
    for name in names:
        content = (directory / name).read_bytes()
        files[name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(directory, files=files)


def change_graph(directory, name, change):
    """Load a graph, let `change` work on it, write and record it."""
    model = onnx.load(directory / name)
    change(model.graph)
    (directory / name).write_bytes(model.SerializeToString())
    record(directory, name)


def nan_weights(graph):
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))


def nan_for_one_length(graph):
    """NaN where a single payload length, -498, is looked up (token 6 + 2 * 498)."""
    for tensor in graph.initializer:
        if tensor.dims and tensor.dims[0] == 3007:
            array = numpy_helper.to_array(tensor).copy()
            array[1002] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            return
    raise AssertionError("no table of lengths")


def rename_output(graph):
    old = graph.output[0].name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == old else name for name in names]
    graph.output[0].name = "other"


def replace_output(graph, *nodes, constants=()):
    """Let the first output be what `nodes` make of it, from `was` to `is`."""
    wanted = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["was" if name == wanted else name for name in node.output]
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants)
    graph.node.extend(nodes)
    graph.node.append(helper.make_node("Identity", ["is"], [wanted]))


def scalar(name, kind):
    return helper.make_tensor_value_info(name, kind, [])


def endless_loop(graph):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["going"]), helper.make_node("Identity", ["carried"], ["carried_on"])],
        "body",
        [scalar("i", TensorProto.INT64), scalar("go", TensorProto.BOOL),
         helper.make_tensor_value_info("carried", TensorProto.FLOAT, None)],
        [scalar("going", TensorProto.BOOL), helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, None)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["most", "yes", "was"], ["is"], body=body)
    replace_output(graph, loop, constants=[("most", np.int64(2**62)), ("yes", True)])


def hours_of_products(graph):
    """No loop, and yet no end: products of large matrices."""
    nodes = [helper.make_node("ConstantOfShape", ["side"], ["big_0"])]
    nodes += [helper.make_node("MatMul", [f"big_{n}", f"big_{n}"], [f"big_{n + 1}"]) for n in range(2000)]
    nodes += [helper.make_node("ReduceSum", ["big_2000"], ["sum"], keepdims=0)]
    nodes += [helper.make_node("Add", ["was", "sum"], ["is"])]
    replace_output(graph, *nodes, constants=[("side", np.array([3000, 3000], np.int64))])


def tens_of_gigabytes(graph):
    nodes = [helper.make_node("ConstantOfShape", ["side"], ["big"])]
    nodes += [
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["was", "sum"], ["is"]),
    ]
    replace_output(graph, *nodes, constants=[("side", np.array([100_000, 100_000], np.int64))])


def one_row(graph):
    """As many classes as declared, but one row for all flows."""
    node = helper.make_node("Slice", ["was", "zero", "one", "zero"], ["is"])
    replace_output(graph, node, constants=[("zero", np.array([0])), ("one", np.array([1]))])


def one_class_less(graph):
    graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    node = helper.make_node("Slice", ["was", "zero", "minus", "one"], ["is"])
    replace_output(graph, node, constants=[("zero", np.array([0])), ("minus", np.array([-1])), ("one", np.array([1]))])


def external(path):
    """Move the first weights into another file."""

    def change(graph):
        tensor = next(tensor for tensor in graph.initializer if tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=path)

    return change
