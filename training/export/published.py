"""What every import of a published checkpoint does: reads labels, configurations and weights, never unpickling freely,
and fits them to a network. The only place that reads `.bin` and `.pt`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tapline.models.checkpoint import AnyCheckpoint

_T = TypeVar("_T")


class ImportRefusedError(ValueError):
    """A published checkpoint cannot be imported; the message says which file, what was expected and what came."""


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


def check_labels(labels: list[str], weights: Path | None = None, classes: int | None = None) -> None:
    """Check that labels can be those of a classifier of so many classes.

    Raises:
        ImportRefusedError: one is empty or there twice, or they are too many or too few for the weights.
    """
    if len(set(labels)) != len(labels) or not all(labels):
        raise ImportRefusedError("labels: expected distinct, non-empty names")
    if classes not in (None, len(labels)):
        raise ImportRefusedError(f"{weights}: {classes} classes, but {len(labels)} labels were given")


def make_network(config: Path, kind: type[_T], labels: list[str], sizes: Mapping[str, Any]) -> _T:
    """The network of these sizes for the labels.

    Raises:
        ImportRefusedError: the sizes of the configuration cannot be.
    """
    try:
        return msgspec.convert({**sizes, "n_class": len(labels)}, kind)
    except msgspec.ValidationError as error:
        raise ImportRefusedError(f"{config}: {error}") from None


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


def fit_weights(
    path: Path,
    found: Mapping[str, Tensor],
    network: Callable[[], nn.Module],
    unread: Callable[[str], bool],
    what: str,
    prefix: str = "",
) -> dict[str, NDArray[np.float32]]:
    """The weights below `prefix` that a network needs, in float32: all but those that are `unread` where it serves.

    Raises:
        ImportRefusedError: a weight is missing, unknown, not finite or of another shape; `what` says of what.
    """
    with torch.device("meta"):
        expected = {name: value for name, value in network().state_dict().items() if name.startswith(prefix)}
    needed = [name for name in expected if not unread(name)]
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


def imported_card(manifest: AnyCheckpoint, what: str, more: str = "") -> str:
    """The card of an imported checkpoint, which nothing is known of but `what` it is; `more` are lines of their own."""
    labels = "\n".join(f"* {label}" for label in manifest.labels)
    return (
        f"# {manifest.name} {manifest.version}\n\nImported {what}.\n"
        "Its confidence is not calibrated and it never says *unknown*, until it is evaluated on traffic of yours.\n"
        f"{more}\n## Labels\n\n{labels}\n"
    )
