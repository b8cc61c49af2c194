"""Import of published checkpoints into the checkpoint directory. The only place that reads `.bin`, never unpickling."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tapline.models.checkpoint import Checkpoint, Mm4flowNetwork, file_sha256
from tapline.models.mm4flow import Mm4flow
from tapline.training.export.checkpoint_export import export

_T = TypeVar("_T")
_CLASSIFIER = "classifier.0.weight"


class ImportRefusedError(ValueError):
    """A published checkpoint cannot be imported; the message says which file, what was expected and what came."""


class PublishedConfig(msgspec.Struct, frozen=True):
    """The sizes in a published configuration; other fields are not read."""

    d_model: int
    n_layer: int
    n_head: int
    dim_ff: int


def read_labels_file(path: Path) -> list[str]:
    """Labels in the order of their class index, from a published `info.json` with `label2idx`.

    Raises:
        ImportRefusedError: unreadable, without `label2idx`, or the indices are not 0 to n-1.
    """

    class Info(msgspec.Struct):
        label2idx: dict[str, int]

    index = decode_json(path, Info).label2idx
    labels = sorted(index, key=index.__getitem__)
    if [index[label] for label in labels] != list(range(len(labels))):
        raise ImportRefusedError(f"{path}: expected label2idx to number the labels from 0 to {len(labels) - 1}")
    return labels


def import_mm4flow(
    weights: Path, config: Path, labels: list[str], directory: Path, name: str, version: str
) -> Checkpoint:
    """Write the published weights as a checkpoint directory.

    Args:
        weights: safetensors, or `pytorch_model.bin`.
        config: JSON with `d_model`, `n_layer`, `n_head` and `dim_ff`.
        labels: in the order of the class index.
        directory: where to write.
        name: of the checkpoint.
        version: of the checkpoint.

    Raises:
        ImportRefusedError: a file is unreadable or unsafe, a weight is missing, unknown, not finite or of another shape
            than the configuration and the labels say.
    """
    if len(set(labels)) != len(labels) or not all(labels):
        raise ImportRefusedError("labels: expected distinct, non-empty names")
    sizes = decode_json(config, PublishedConfig)
    found = load_tensors(weights)
    classes = found[_CLASSIFIER].shape[0] if _CLASSIFIER in found else len(labels)
    if classes != len(labels):
        raise ImportRefusedError(f"{weights}: {classes} classes, but {len(labels)} labels were given")
    try:
        network = msgspec.convert({**msgspec.structs.asdict(sizes), "n_class": len(labels)}, Mm4flowNetwork)
    except msgspec.ValidationError as error:
        raise ImportRefusedError(f"{config}: {error}") from None
    checked = _check(weights, found, network)
    manifest = Checkpoint(
        kind="mm4flow",
        name=name,
        version=version,
        network=network,
        labels=labels,
        provenance={"imported": {weights.name: file_sha256(weights), config.name: file_sha256(config)}},
    )
    return export(directory, manifest, checked, _card)


def decode_json(path: Path, kind: type[_T]) -> _T:
    """A JSON file as `kind`.

    Raises:
        ImportRefusedError: it is unreadable, or not of that form.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ImportRefusedError(f"{path}: unreadable ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImportRefusedError(f"{path}: {error}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of torch's zip form (`.bin`, `.pt`), which is never unpickled freely.

    Raises:
        ImportRefusedError: it is unreadable, of another form, or holds more than tensors by name.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        found: Any = torch.load(path, map_location="cpu", weights_only=True) if zipped else load_file(path)
    except OSError as error:
        raise ImportRefusedError(f"{path}: unreadable ({error.strerror})") from None
    except pickle.UnpicklingError:
        raise ImportRefusedError(
            f"{path}: refused: it holds more than tensors, which could run code when loaded"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, EOFError):
        raise ImportRefusedError(f"{path}: neither safetensors nor the zip form that torch writes") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ImportRefusedError(f"{path}: expected tensors by name")
    return {name: value for name, value in found.items() if not name.endswith(".position_ids")}


def _check(path: Path, found: dict[str, Tensor], network: Mm4flowNetwork) -> dict[str, NDArray[np.float32]]:
    """The weights that the network needs, float32, each with the shape that it must have."""
    with torch.device("meta"):
        expected = Mm4flow(network).state_dict()
    needed = [name for name in expected if ".cls." not in name]
    return fit_weights(path, found, expected, needed, "a whole MM4flow")


def fit_weights(
    path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], needed: Sequence[str], what: str
) -> dict[str, NDArray[np.float32]]:
    """The weights `needed`, in float32, if `found` has them and nothing that is not in `expected`.

    Raises:
        ImportRefusedError: a weight is missing, unknown, not finite or of another shape; `what` says of what.
    """
    if missing := [name for name in needed if name not in found]:
        raise ImportRefusedError(f"{path}: {len(missing)} weights missing, the first {missing[0]}: not {what}")
    if extra := [name for name in found if name not in expected]:
        raise ImportRefusedError(f"{path}: {len(extra)} weights too many for this configuration, the first {extra[0]}")
    for name in needed:
        if found[name].shape != expected[name].shape:
            raise ImportRefusedError(
                f"{path}: {name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
            )
        if not torch.isfinite(found[name]).all():
            raise ImportRefusedError(f"{path}: {name} holds values that are not finite")
    return {name: found[name].float().numpy() for name in needed}


def _card(manifest: Checkpoint) -> str:
    labels = "\n".join(f"* {label}" for label in manifest.labels)
    network = manifest.network
    size = f"{network.d_model}/{network.n_layer}/{network.n_head}/{network.dim_ff}"
    return (
        f"# {manifest.name} {manifest.version}\n\nImported MM4flow checkpoint "
        f"(width/layers/heads/feed-forward {size}).\n"
        "Its confidence is not calibrated and it never says *unknown*, until it is evaluated on traffic of yours.\n\n"
        f"## Labels\n\n{labels}\n"
    )
