"""The file of a student, `student.safetensors`: reading it with every check, by numpy alone. `training` writes it."""

from __future__ import annotations

from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import STUDENT, Checkpoint, CheckpointError, read_file
from tapline.models.student import LARGEST, LARGEST_BIAS, LARGEST_TABLE_BIAS, VALUES, StudentModel, StudentWeights

_HEADER_AT = 8
_TYPES: dict[str, np.dtype[Any]] = {"I8": np.dtype("<i1"), "I32": np.dtype("<i4")}


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a tensor lies in a safetensors file, from the end of its header on."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_student(directory: Path, checkpoint: Checkpoint) -> StudentModel | None:
    """The student of a checkpoint whose manifest was read, None where it has none.

    Raises:
        CheckpointError: its file is not the recorded one, or holds other tensors than such a student has.
    """
    if checkpoint.student is None:
        return None
    content = read_file(directory, checkpoint, STUDENT)
    try:
        weights = _weights(content, checkpoint)
    except (ValueError, msgspec.MsgspecError) as error:
        raise CheckpointError(
            f"{directory / STUDENT}: not this checkpoint's student: {error}: distil it again"
        ) from None
    return StudentModel(checkpoint.student.network, checkpoint.features, weights)


def tensor_shapes(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a checkpoint's student, by its name."""
    assert checkpoint.student is not None
    sizes, network = checkpoint.student.network, checkpoint.network
    wide, hidden = sizes.table_width, sizes.hidden_width
    layers = {
        "table": (sizes.fields, VALUES, wide),
        "hidden": (hidden, wide),
        "logits": (network.n_class, hidden),
        "embedding": (2 * network.d_model, hidden),
    }
    found: dict[str, tuple[str, tuple[int, ...]]] = {name: ("I8", shape) for name, shape in layers.items()}
    found |= {f"{name}_bias": ("I32", shape[:1]) for name, shape in layers.items()}
    return found | {"table_bias": ("I32", (wide,))}


def _weights(content: bytes, checkpoint: Checkpoint) -> StudentWeights:
    """The tensors of the file.

    Raises:
        ValueError, msgspec.MsgspecError: they are not those of the checkpoint's student.
    """
    size = int.from_bytes(content[:_HEADER_AT], "little")
    header = msgspec.json.decode(content[_HEADER_AT : _HEADER_AT + size], type=dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    wanted = tensor_shapes(checkpoint)
    if header.keys() != wanted.keys():
        raise ValueError(f"expected {len(wanted)} tensors ({', '.join(wanted)}), got {len(header)}")
    data = memoryview(content)[_HEADER_AT + size :]
    tensors: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in wanted.items():
        tensor = msgspec.json.decode(header[name], type=_Tensor)
        start, end = tensor.data_offsets
        size_bytes = prod(shape) * _TYPES[dtype].itemsize
        if (
            (tensor.dtype, tuple(tensor.shape)) != (dtype, shape)
            or start < 0
            or end > len(data)
            or end - start != size_bytes
        ):
            raise ValueError(
                f"expected {name} as {dtype} {list(shape)}, got {tensor.dtype[:8]} of another shape or place"
            )
        tensors[name] = np.frombuffer(data[start:end], _TYPES[dtype]).reshape(shape)
        _check_range(name, tensors[name])
    return StudentWeights(**{field.name: tensors[field.name] for field in fields(StudentWeights)})


def _check_range(name: str, tensor: NDArray[Any]) -> None:
    """Refuse numbers whose sums would not be exact."""
    largest = LARGEST_TABLE_BIAS if name == "table_bias" else LARGEST_BIAS if name.endswith("_bias") else LARGEST
    if int(tensor.max()) > largest or int(tensor.min()) < -largest:
        raise ValueError(f"expected {name} from {-largest} to {largest}")
