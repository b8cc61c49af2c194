"""The checkpoint directory: reading it with every check. What its manifest says is in `checkpoint_manifest`;
`checkpoint_writing` writes it.

`<repository>/<name>/<version>/` holds `checkpoint.json`, `model.safetensors` and `README.md`; of MM4flow (flows)
`model.onnx`, of Tracegram (traces) `trace.onnx` and, where it encodes flows itself, `encoder.onnx`; it may hold
`baseline.json`, which `baseline` describes. Nothing in it is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from tapline.models.checkpoint_files import CheckpointError as CheckpointError
from tapline.models.checkpoint_files import FileRecord as FileRecord
from tapline.models.checkpoint_files import file_sha256 as file_sha256
from tapline.models.checkpoint_files import is_file_name, read_inside, read_recorded, refuse_remote
from tapline.models.checkpoint_manifest import FORMAT_VERSION as FORMAT_VERSION
from tapline.models.checkpoint_manifest import UNKNOWN as UNKNOWN
from tapline.models.checkpoint_manifest import AnyCheckpoint as AnyCheckpoint
from tapline.models.checkpoint_manifest import Calibration as Calibration
from tapline.models.checkpoint_manifest import Checkpoint as Checkpoint
from tapline.models.checkpoint_manifest import EarlyVerdict as EarlyVerdict
from tapline.models.checkpoint_manifest import FlowCheckpoint as FlowCheckpoint
from tapline.models.checkpoint_manifest import OwnMm4flow as OwnMm4flow
from tapline.models.checkpoint_manifest import Rule as Rule
from tapline.models.checkpoint_manifest import Suspicion as Suspicion
from tapline.models.checkpoint_manifest import TracegramCheckpoint as TracegramCheckpoint
from tapline.models.checkpoint_manifest import Unknown as Unknown
from tapline.models.checkpoint_networks import Mm4flowNetwork as Mm4flowNetwork
from tapline.models.checkpoint_networks import TracegramNetwork as TracegramNetwork
from tapline.models.context import context_fault
from tapline.models.encode import FEATURE_VERSION, Mm4flowFeatures
from tapline.models.foreign_text import clean
from tapline.models.packet_tokens import PACKET_FEATURE_VERSION

MANIFEST = "checkpoint.json"
WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
ONNX_INT8 = "model.int8.onnx"
ENCODER_ONNX = "encoder.onnx"
ENCODER_ONNX_INT8 = "encoder.int8.onnx"
TRACE_ONNX = "trace.onnx"
BASELINE = "baseline.json"
STUDENT = "student.safetensors"
CARD = "README.md"
MAX_MANIFEST_BYTES = 4 << 20

_C = TypeVar("_C", Checkpoint, TracegramCheckpoint)


class _Versions(msgspec.Struct):
    """What is read of a manifest before anything else is believed."""

    kind: Literal["mm4flow", "tracegram"]
    format_version: int
    feature_version: int


_FEATURE_VERSIONS = {"mm4flow": FEATURE_VERSION, "tracegram": PACKET_FEATURE_VERSION}
_WHAT = {"mm4flow": "a flow checkpoint (mm4flow)", "tracegram": "a trace checkpoint (tracegram)"}


_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def read_file(directory: Path, checkpoint: AnyCheckpoint, name: str) -> bytes:
    """A file of a checkpoint whose manifest was read, verified: what is run is these very bytes.

    Raises:
        CheckpointError: the checkpoint has none of this name, or it is not the one that was written.
    """
    return read_recorded(directory / name, _record(directory, checkpoint, name))


def read_checkpoint(directory: Path, needs: tuple[str, ...] = (ONNX,)) -> Checkpoint:
    """Read and verify the directory of a flow checkpoint; `needs` names the files that must be there.

    Raises:
        CheckpointError: it is missing, of another kind or version, inconsistent, or a file is not the one that was
            written.
    """
    return _read(directory, Checkpoint, "mm4flow", lambda checkpoint: needs)


def read_trace_checkpoint(directory: Path, needs: tuple[str, ...] | None = None) -> TracegramCheckpoint:
    """Read and verify the directory of a trace checkpoint, as `read_checkpoint` does for flows.

    `needs` names the files that must be there; None: the graphs that serve it.

    Raises:
        CheckpointError: as there.
    """
    return _read(directory, TracegramCheckpoint, "tracegram", lambda checkpoint: needs or _graphs(checkpoint))


def read_any_checkpoint(directory: Path) -> AnyCheckpoint:
    """Read and verify a checkpoint of either kind, with every file that its manifest names.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    return _read_any(directory, lambda checkpoint: tuple(checkpoint.files))


def read_any_manifest(directory: Path) -> AnyCheckpoint:
    """Read and verify the manifest of a checkpoint of either kind, and no other file.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    return _read_any(directory, lambda checkpoint: ())


def _read_any(directory: Path, needs: Callable[[AnyCheckpoint], tuple[str, ...]]) -> AnyCheckpoint:
    text = _read_manifest(directory)
    if _read_versions(directory, text).kind == "mm4flow":
        return _verified(directory, text, Checkpoint, needs)
    return _verified(directory, text, TracegramCheckpoint, needs)


def checkpoint_kind(directory: Path) -> Literal["mm4flow", "tracegram"]:
    """Which kind of checkpoint a directory holds; nothing else of it is verified.

    Raises:
        CheckpointError: it holds none that this version reads.
    """
    return _read_versions(directory, _read_manifest(directory)).kind


def _graphs(checkpoint: TracegramCheckpoint) -> tuple[str, ...]:
    return (TRACE_ONNX, ENCODER_ONNX) if checkpoint.has_encoder else (TRACE_ONNX,)


def _read(directory: Path, manifest: type[_C], kind: str, needs: Callable[[_C], tuple[str, ...]]) -> _C:
    text = _read_manifest(directory)
    found = _read_versions(directory, text).kind
    if found != kind:
        raise CheckpointError(f"{directory}: {_WHAT[found]}, expected {_WHAT[kind]}: give another directory")
    return _verified(directory, text, manifest, needs)


def _read_versions(directory: Path, text: bytes) -> _Versions:
    try:
        versions = msgspec.json.decode(text, type=_Versions)
    except _UNREADABLE as error:
        raise CheckpointError(f"{directory / MANIFEST}: not a checkpoint manifest: {clean(str(error))}") from None
    _verify_version(directory, "format", versions.format_version, FORMAT_VERSION)
    _verify_version(directory, "feature", versions.feature_version, _FEATURE_VERSIONS[versions.kind])
    return versions


def _verify_version(directory: Path, what: str, got: int, expected: int) -> None:
    if got != expected:
        raise CheckpointError(
            f"{directory}: {what} version {got}, this tapline reads {expected}: export the checkpoint again"
        )


def _verified(directory: Path, text: bytes, manifest: type[_C], needs: Callable[[_C], tuple[str, ...]]) -> _C:
    try:
        checkpoint = msgspec.json.decode(text, type=manifest)
    except _UNREADABLE as error:
        raise CheckpointError(f"{directory / MANIFEST}: {clean(str(error))}") from None
    _verify(directory, checkpoint, needs(checkpoint))
    return checkpoint


def _read_manifest(directory: Path) -> bytes:
    refuse_remote(directory)
    try:
        return read_inside(directory / MANIFEST, MAX_MANIFEST_BYTES)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{directory / MANIFEST}: ")
        raise CheckpointError(f"{directory}: no readable {MANIFEST} ({reason}): not a checkpoint") from None


def _verify(directory: Path, checkpoint: AnyCheckpoint, needs: tuple[str, ...]) -> None:
    if checkpoint.network.n_class != len(checkpoint.labels) + checkpoint.unknown.background:
        background = " and a background class" if checkpoint.unknown.background else ""
        raise CheckpointError(
            f"{directory}: {len(checkpoint.labels)} labels{background} for a network of "
            f"{checkpoint.network.n_class} classes"
        )
    if len(set(checkpoint.labels)) != len(checkpoint.labels):
        raise CheckpointError(f"{directory}: a label occurs twice")
    if UNKNOWN in checkpoint.labels:
        raise CheckpointError(f"{directory}: a label `{UNKNOWN}`: that is what verdicts without a label say")
    if isinstance(checkpoint, TracegramCheckpoint):
        _verify_encoder(directory, checkpoint)
        if checkpoint.suspicion is not None and not checkpoint.unknown.background:
            raise CheckpointError(f"{directory}: it tells suspicion, but has no background class: export it again")
    else:
        _verify_tokens(directory, checkpoint.features, checkpoint.network)
        verify_context(directory, checkpoint)
        _verify_student(directory, checkpoint)
    for name in needs:
        _record(directory, checkpoint, name)
    _verify_sizes(directory, checkpoint)
    for name, record in checkpoint.files.items():
        if not is_file_name(name):
            raise CheckpointError(f"{directory}: a file name with a path in the manifest: export it again")
        if name in needs:
            read_recorded(directory / name, record)


def verify_context(directory: Path, checkpoint: Checkpoint) -> None:
    """Check that the context is one of the checkpoint's classes, and of bounded size.

    Raises:
        CheckpointError: it is not.
    """
    fault = context_fault(checkpoint.context, checkpoint.network.n_class) if checkpoint.context else None
    if fault is not None:
        raise CheckpointError(f"{directory}: its context {fault}: export it again")


def _verify_student(directory: Path, checkpoint: Checkpoint) -> None:
    student = checkpoint.student
    if student is None:
        return
    read, features = student.network, checkpoint.features
    if read.content_bytes > max(features.content_bytes, 1) or read.payload_lengths > features.payload_lengths:
        raise CheckpointError(f"{directory}: its student reads more of a flow than its network: distil it again")
    for ports, threshold in ((True, student.threshold), (False, student.threshold_without_ports)):
        if threshold < checkpoint.rule(ports=ports).threshold:
            raise CheckpointError(f"{directory}: its student answers what is unknown: distil it again")
    _record(directory, checkpoint, STUDENT)


def _record(directory: Path, checkpoint: AnyCheckpoint, name: str) -> FileRecord:
    record = checkpoint.files.get(name)
    if record is None:
        raise CheckpointError(f"{directory}: {name} is not part of this checkpoint")
    return record


def _verify_sizes(directory: Path, checkpoint: AnyCheckpoint) -> None:
    """Refuse a network that the files cannot hold, before anything of its size is made."""
    weights, size_bytes = checkpoint.network.least_weights, sum(file.size_bytes for file in checkpoint.files.values())
    if isinstance(checkpoint, TracegramCheckpoint) and checkpoint.mm4flow is not None:
        weights += checkpoint.mm4flow.network.least_weights
    if checkpoint.files and weights > size_bytes:  # a weight takes a byte at least, as int8
        raise CheckpointError(f"{directory}: {weights} weights or more in files of {size_bytes} bytes: export it again")


def _verify_encoder(directory: Path, checkpoint: TracegramCheckpoint) -> None:
    network, own = checkpoint.network, checkpoint.mm4flow
    sources = [
        what
        for what, found in (("a flow checkpoint", checkpoint.flow_checkpoint), ("an own mm4flow", own))
        if found is not None
    ]
    if len(sources) != (network.encoder == "mm4flow"):
        names = " and ".join(sources) or "neither a flow checkpoint nor an own mm4flow"
        raise CheckpointError(f"{directory}: its encoder is {network.encoder}, but it names {names}: export it again")
    if network.encoder == "tracegram" and checkpoint.features.max_tokens > network.max_seq_len:
        raise CheckpointError(
            f"{directory}: features of {checkpoint.features.max_tokens} tokens for an encoder of at most "
            f"{network.max_seq_len}"
        )
    if own is not None:
        _verify_own(directory, own, network.feature_size)


def _verify_own(directory: Path, own: OwnMm4flow, feature_size: int) -> None:
    _verify_version(directory, "mm4flow feature", own.feature_version, FEATURE_VERSION)
    if feature_size != 2 * own.network.d_model:
        raise CheckpointError(
            f"{directory}: feature_size {feature_size} is not twice the d_model {own.network.d_model} of its mm4flow"
        )
    _verify_tokens(directory, own.features, own.network)


def _verify_tokens(directory: Path, features: Mm4flowFeatures, network: Mm4flowNetwork) -> None:
    for tokens, most in (
        (features.most_ps_tokens, network.ps_max_tokens),
        (features.most_bytes_tokens, network.bytes_max_tokens),
    ):
        if tokens > most:
            raise CheckpointError(f"{directory}: features of {tokens} tokens for an encoder of at most {most}")
