"""Import of published MM4flow classifiers into the checkpoint directory."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tapline.models.checkpoint import Checkpoint, Mm4flowNetwork, file_sha256
from tapline.models.mm4flow import Mm4flow
from tapline.training.export.checkpoint_export import export
from tapline.training.export.published import (
    check_labels,
    decode_json,
    fit_weights,
    imported_card,
    load_tensors,
    make_network,
)

_CLASSIFIER = "classifier.0.weight"


class PublishedConfig(msgspec.Struct, frozen=True):
    """The sizes in a published configuration; other fields are not read."""

    d_model: int
    n_layer: int
    n_head: int
    dim_ff: int


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
    check_labels(labels)
    sizes = decode_json(config, PublishedConfig)
    found = load_tensors(weights)
    check_labels(labels, weights, found[_CLASSIFIER].shape[0] if _CLASSIFIER in found else None)
    network = make_network(config, Mm4flowNetwork, labels, msgspec.structs.asdict(sizes))
    checked = fit_weights(weights, found, lambda: Mm4flow(network), lambda name: ".cls." in name, "a whole MM4flow")
    manifest = Checkpoint(
        kind="mm4flow",
        name=name,
        version=version,
        network=network,
        labels=labels,
        provenance={"imported": {path.name: file_sha256(path) for path in (weights, config)}},
    )
    size = f"{network.d_model}/{network.n_layer}/{network.n_head}/{network.dim_ff}"
    what = f"MM4flow checkpoint (width/layers/heads/feed-forward {size})"
    return export(directory, manifest, checked, lambda whole: imported_card(whole, what))
