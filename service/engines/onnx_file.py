"""What an ONNX file may hold, checked before ONNX Runtime sees it: one whole graph, and no way to another file.

It is read as protobuf's wire format, message by message, by the field numbers of `onnx.proto3`; the base install has no
`onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator

_MODEL = {7: "graph", 20: "training", 25: "function"}
_TENSORS = {5: "tensor", 10: "tensor", 22: "sparse", 23: "sparse"}
_INSIDE: dict[str, dict[int, str]] = {
    "model": _MODEL,
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {**_TENSORS, 6: "subgraph", 11: "subgraph"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_REFUSED = {
    "subgraph": "it has loops or branches, expected a plain graph",
    "function": "it has functions of its own, expected a plain graph",
    "training": "it is for training, expected a graph that serves",
}

_FIXED_BYTES = {1: 8, 5: 4}


class OnnxFileError(ValueError):
    """A file holds what no model of this project does; the message says what, and what was expected."""


def check_onnx(content: bytes) -> None:
    """Refuse what may run without end, or read a file that no manifest names.

    Raises:
        OnnxFileError: it has loops, branches, functions, or weights in another file; or it is no ONNX file.
    """
    found_graph = False
    waiting = [("model", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        for number, value in _fields(message):
            if kind == "tensor":
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                    raise OnnxFileError("its weights are in another file (external data), expected them inside")
                continue
            inner = _INSIDE[kind].get(number)
            if inner is None or not isinstance(value, memoryview):
                continue
            if inner in _REFUSED:
                raise OnnxFileError(_REFUSED[inner])
            found_graph = found_graph or inner == "graph"
            waiting.append((inner, value))
    if not found_graph:
        raise OnnxFileError("not an ONNX file: there is no graph in it")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field; of fixed-width ones the value is 0."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise OnnxFileError("not an ONNX file: it is cut or damaged")
            yield number, message[at : at + length]
            at += length
        elif wire in _FIXED_BYTES:
            at += _FIXED_BYTES[wire]
            yield number, 0
        else:
            raise OnnxFileError("not an ONNX file: it is cut or damaged")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number there, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise OnnxFileError("not an ONNX file: it is cut or damaged")
