"""What the manifest of a checkpoint says, of flows and of traces; `checkpoint` reads and verifies it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from tapline.models.checkpoint_files import FileRecord
from tapline.models.checkpoint_networks import Mm4flowNetwork, TracegramNetwork
from tapline.models.context import FlowContext
from tapline.models.encode import FEATURE_VERSION, Mm4flowFeatures
from tapline.models.packet_tokens import PACKET_FEATURE_VERSION, TracegramFeatures
from tapline.models.student import Student
from tapline.models.trace import TraceSettings

FORMAT_VERSION = 1
UNKNOWN = "unknown"
"""The label of verdicts that are unknown; no checkpoint has a label of this name."""


_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How logits become confidence: softmax of logits over the temperature (Guo et al., ICML 2017)."""

    temperature: Annotated[float, msgspec.Meta(ge=0.01, le=100)] = 1.0


class Unknown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a verdict says *unknown*: the calibrated confidence of the best label is below the threshold.

    With `background` the network has one class after the labels, trained on traffic that bears none of them (outlier
    exposure, Hendrycks et al., ICLR 2019). It is never a verdict: what it takes, the labels' confidence lacks.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    background: bool = False


class Suspicion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a trace is *suspicious*: every label is of a malicious kind, and the share that the background class leaves
    to all of them together is at least the threshold.

    It may be so where no single label is sure: of a kind that was never learned, or where two labels are alike. A trace
    that is not suspicious has no label either: its verdict says *unknown*.
    """

    threshold: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Rule(NamedTuple):
    """What makes verdicts of logits: the temperature of the confidence, and below which confidence it is *unknown*."""

    temperature: float
    threshold: float


_Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")]
_Version = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$")]


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest. `metrics` states the data each figure was measured on; `provenance` how the weights came about.

    `context` adds to the network's logits what transport and port of a flow say; None: neither is read. `student`
    answers the flows that it is sure of in the network's place; None: the network answers all.
    """

    kind: Literal["mm4flow"]
    name: _Name
    version: _Version
    network: Mm4flowNetwork
    labels: list[_Label]
    features: Mm4flowFeatures = Mm4flowFeatures()
    calibration: Calibration = Calibration()
    unknown: Unknown = Unknown()
    context: FlowContext | None = None
    student: Student | None = None
    min_packets: Annotated[int, msgspec.Meta(ge=1)] = 1
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    files: dict[str, FileRecord] = {}
    format_version: int = FORMAT_VERSION
    feature_version: int = FEATURE_VERSION

    def __repr__(self) -> str:  # all of it takes pages
        return f"<Checkpoint {self.name} {self.version}: {len(self.labels)} labels>"

    @property
    def has_ports(self) -> bool:
        """Whether verdicts read ports, unless that is switched off."""
        return self.context is not None and self.context.ports is not None

    def rule(self, *, ports: bool = True) -> Rule:
        """How verdicts with ports are made, or those without, which differ only where there is a prior of ports."""
        prior = self.context.ports if self.context is not None else None
        if ports or prior is None:
            return Rule(self.calibration.temperature, self.unknown.threshold)
        return Rule(prior.temperature, prior.threshold)


class FlowCheckpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The MM4flow checkpoint whose embeddings a trace checkpoint was trained on; no other serves it."""

    name: _Name
    version: _Version
    weights_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class OwnMm4flow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An MM4flow encoder that a trace checkpoint brings, tuned on the labels of traces, and what it reads of a flow.

    Its embedding, 2 `network.d_model` wide, is the flow's feature. There is no classifier: `network.n_class` means
    nothing.
    """

    network: Mm4flowNetwork
    features: Mm4flowFeatures = Mm4flowFeatures()
    feature_version: int = FEATURE_VERSION


class EarlyVerdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a window that is still open gets a verdict: from this confidence on, with at least so many flows."""

    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.95
    min_flows: Annotated[int, msgspec.Meta(ge=1)] = 3


class TracegramCheckpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest of a trace checkpoint. `trace` says what a trace is, `features` what is read of a flow's heads.

    Where the network's encoder is `tracegram`, the checkpoint has it and reads `features`. Where it is `mm4flow`,
    `features` are not used, and exactly one is there: `mm4flow`, an encoder of its own, or `flow_checkpoint`, the one
    that classifies the flows and gives their embeddings in the same pass. Where it is `context`, neither is.

    With `suspicion` all labels are of a malicious kind, and every verdict says whether the trace is of any.
    """

    kind: Literal["tracegram"]
    name: _Name
    version: _Version
    network: TracegramNetwork
    labels: list[_Label]
    features: TracegramFeatures = TracegramFeatures()
    trace: TraceSettings = TraceSettings()
    flow_checkpoint: FlowCheckpoint | None = None
    mm4flow: OwnMm4flow | None = None
    calibration: Calibration = Calibration()
    unknown: Unknown = Unknown()
    suspicion: Suspicion | None = None
    early: EarlyVerdict = EarlyVerdict()
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    files: dict[str, FileRecord] = {}
    format_version: int = FORMAT_VERSION
    feature_version: int = PACKET_FEATURE_VERSION

    def __repr__(self) -> str:
        return f"<TracegramCheckpoint {self.name} {self.version}: {len(self.labels)} labels>"

    @property
    def has_encoder(self) -> bool:
        """Whether it brings an encoder of flows; else a flow checkpoint's embeddings are their features, or nothing but
        their context is."""
        return self.flow_checkpoint is None and self.network.encoder != "context"


AnyCheckpoint = Checkpoint | TracegramCheckpoint
