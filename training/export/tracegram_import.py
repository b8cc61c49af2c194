"""Import of published Tracegram checkpoints: the flow encoder's and the trace network's weights, the configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tapline.models.checkpoint import TracegramCheckpoint, TracegramNetwork, file_sha256
from tapline.models.packet_tokens import VOCABULARY, TracegramFeatures
from tapline.models.trace import TraceSettings
from tapline.models.tracegram import Tracegram, is_for_training
from tapline.training.export.checkpoint_export import export_traces
from tapline.training.export.published import (
    ImportRefusedError,
    check_labels,
    decode_json,
    fit_weights,
    imported_card,
    load_tensors,
    make_network,
)

PUBLISHED_MAX_TOKENS = 512
"""Tokens that the published code reads of a flow in a trace."""


UNMASKED = "Addresses inside payloads were not masked when it was trained, and are not when it is served.\n"


class PublishedEncoder(msgspec.Struct, frozen=True):
    """The published configuration of the flow encoder, arguments of `LinearAttentionTransformerLM`.

    The fields without a default size the network; the others must be what the published network has. Fields that say
    nothing about what is computed at inference (dropout, chunks) are not read, nor `ff_glu`, which the package does not
    pass on.
    """

    dim: int
    depth: int
    max_seq_len: int
    heads: int
    dim_head: int
    emb_dim: int
    blindspot_size: int
    n_local_attn_heads: int
    local_attn_window_size: int
    num_tokens: int = VOCABULARY
    causal: bool = False
    reversible: bool = False
    shift_tokens: bool = False
    attend_axially: bool = False
    use_rotary_emb: bool = False


_FIXED = {
    "num_tokens": VOCABULARY,
    "causal": True,
    "reversible": True,
    "shift_tokens": True,
    "attend_axially": False,
    "use_rotary_emb": False,
}
_SIZES = [name for name in PublishedEncoder.__struct_fields__ if name not in _FIXED]


def import_tracegram(
    encoder: Path,
    trace: Path,
    config: Path,
    labels: list[str],
    directory: Path,
    name: str,
    version: str,
    settings: TraceSettings,
    payload: bool,
) -> TracegramCheckpoint:
    """Write published weights as a checkpoint directory.

    Args:
        encoder: weights of the flow encoder, `.pt` or safetensors; the head of its supervised tuning is left out.
        trace: weights of aggregation and head.
        config: JSON with the encoder's arguments, by themselves or under `encoder_config`.
        labels: in the order of the class index.
        directory: where to write.
        name: of the checkpoint.
        version: of the checkpoint.
        settings: what a trace is; published checkpoints do not say.
        payload: whether it was trained on whole packets, not on headers alone.

    Raises:
        ImportRefusedError: a file is unreadable or unsafe, a weight is missing, unknown, not finite or of another shape
            than configuration and labels say, or the configuration is of another network.
    """
    check_labels(labels)
    encoder_weights = _named(load_tensors(encoder), "encoder")
    trace_weights = _named(load_tensors(trace), "trace")
    sizes = _read_config(config)
    network = _network(config, trace, sizes, encoder_weights, trace_weights, labels)
    features = TracegramFeatures(payload, PUBLISHED_MAX_TOKENS, zero_checksums=False, mask_addresses=False)
    checked = _fitted(encoder, encoder_weights, network, "encoder") | _fitted(trace, trace_weights, network, "trace")
    sources = {path.name: file_sha256(path) for path in (encoder, trace, config)}
    manifest = TracegramCheckpoint(
        "tracegram", name, version, network, labels, features, settings, provenance={"imported": sources}
    )
    try:
        return export_traces(directory, manifest, checked, _card(manifest))
    except ValueError as error:  # of the ONNX graph
        raise ImportRefusedError(f"{config}: {error}") from None


def _named(found: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights under the names of `Tracegram`: `part` in front, no wrapper of parallel training."""
    bare = {name.removeprefix("module.").removeprefix(f"{part}."): value for name, value in found.items()}
    return {f"{part}.{name}": value for name, value in bare.items() if not is_for_training(f"{part}.{name}")}


def _fitted(
    path: Path, found: dict[str, Tensor], network: TracegramNetwork, part: str
) -> dict[str, NDArray[np.float32]]:
    what = f"a whole Tracegram {part}"
    return fit_weights(path, found, lambda: Tracegram(network), is_for_training, what, f"{part}.")


def _card(manifest: TracegramCheckpoint) -> str:
    network = manifest.network
    what = (
        f"Tracegram checkpoint (encoder: dim {network.dim}, depth {network.depth}, {network.heads} heads; features "
        f"{network.feature_size} wide)"
    )
    return imported_card(manifest, what, UNMASKED)


def _read_config(path: Path) -> PublishedEncoder:
    class Whole(msgspec.Struct):
        encoder_config: PublishedEncoder

    nested = decode_json(path, dict)
    found = (
        decode_json(path, Whole).encoder_config if "encoder_config" in nested else decode_json(path, PublishedEncoder)
    )
    for name, expected in _FIXED.items():
        if (got := getattr(found, name)) != expected:
            raise ImportRefusedError(f"{path}: {name} is {got}, the published network has {expected}")
    return found


def _network(
    config: Path,
    trace: Path,
    sizes: PublishedEncoder,
    encoder_weights: dict[str, Tensor],
    trace_weights: dict[str, Tensor],
    labels: list[str],
) -> TracegramNetwork:
    """The network; sizes that no configuration names are those of the weights."""
    queries = trace_weights.get("trace.emb2.weight")
    classes = trace_weights.get("trace.c_linear4.bias")
    wide = encoder_weights.get("encoder.decoder_layer.linear1.bias")
    if queries is None or classes is None or queries.ndim != 2:
        raise ImportRefusedError(f"{trace}: no weights of Tracegram's aggregation and head")
    check_labels(labels, trace, len(classes))
    fields = {name: getattr(sizes, name) for name in _SIZES} | {
        "feature_size": queries.shape[1],
        "queries": queries.shape[0],
        "time_encoding": False,
        "decoder_ff": 2048 if wide is None else len(wide),
    }
    return make_network(config, TracegramNetwork, labels, fields)
