"""The settings of Tracegram's training, and what the common training loop needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from tapline.models.checkpoint import Mm4flowNetwork, OwnMm4flow, TracegramNetwork
from tapline.models.encode import Mm4flowFeatures
from tapline.models.packet_tokens import TracegramFeatures
from tapline.models.trace import TraceSettings
from tapline.models.trace_context import CONTEXTS, PACKETS, Field
from tapline.training.loop.config import TrainingConfig

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

SMALL = TracegramNetwork(
    n_class=1, feature_size=64, queries=24, emb_dim=64, dim=64, depth=2, heads=4, dim_head=16, n_local_attn_heads=3
)
"""A network that two cores train in minutes."""


CONTEXT_WIDTH = 64
"""Width of a network that reads the context of flows alone."""

BESIDE_LENGTHS = tuple(field for field in CONTEXTS["all"] if field not in PACKETS)
"""What is read of a flow beside the embedding of an MM4flow."""

JOINT_LENGTHS = 32
"""Payload lengths of a flow that an MM4flow encoder reads unless told otherwise."""

JOINT_CONTENT = 64
"""Content bytes each way of a flow that it reads where payload is measured."""


def encoder_features(lengths: int, content_bytes: int) -> Mm4flowFeatures:
    """What an MM4flow encoder of a trace checkpoint reads of a flow: own addresses are masked wherever content is."""
    return Mm4flowFeatures(lengths, content_bytes, mask_addresses=content_bytes > 0)


class FlowAugmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the flows of phases 0 and 0.5 differ from the recorded ones."""

    prefix: _Share = 0.1
    """probability of cutting a flow to its first packets"""
    jitter_gaps: float = 0.3
    """standard deviation of the logarithm of the change of every gap between packets"""
    random_tokens: _Share = 0.05
    """largest share of byte tokens replaced by random ones"""


class TraceAugmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the traces of phase 1 differ from the recorded ones."""

    drop_flows: _Share = 0.4
    """largest share of flows left out"""
    most_flows: int = 24
    """most flows kept: longer traces cost time and teach no more"""
    part: _Share = 0.1
    """probability of keeping one stretch of the trace only"""
    short_parts: bool = False
    """lengths of stretches are drawn by their logarithm, and every other one is the beginning of the trace: the network
    learns how little a few flows say"""
    jitter_times: float = 0.3
    """standard deviation of the change of the logarithms of gaps and durations"""
    drop_fields: _Share = 0.1
    """probability of each field of the context to be absent from a trace"""
    drop_values: _Share = 0.05
    """share of the values of the context that are absent"""
    feature_dropout: _Share = 0.1
    """share of the features of a flow that are zeroed"""
    views: int = 1
    """augmented copies of every flow whose features are kept beside those of the flow as it is"""


class BagTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the weights of the bag of values are fitted (`training.traces.bag`)."""

    strength: float = 20_000.0
    """how much the traces weigh beside half the squared weights, all of them together"""
    scale: float = 8.0
    """the logits are added so many times to those of the network"""
    parts: int = 4
    """parts of each trace that are learned beside it"""
    parts_share: _Share = 0.3
    """share of the weight of a trace that its parts have"""
    part: _Share = 0.5
    """probability of a part to be a stretch of the trace, lengths drawn by their logarithm"""
    drop_flows: _Share = 0.3
    """largest share of flows left out of a part"""


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a phase trains: `epochs` of `draws` flows or traces in batches of `batch`."""

    epochs: int
    draws: int
    batch: int
    learning_rate: float


class TraceTrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides the training of a trace checkpoint, beside the data.

    `network` has the sizes; its number of classes is set by the data. `capture_power`: how often the flows of a capture
    are drawn (`draw_weights`); classes are drawn equally often. `next_token`: weight of the next-token
    loss beside the label's in phase 0.5; `lengths`: that of the payload lengths in both phases of the flow encoder
    (`training.traces.packet_encoder.LengthHead`). `clip_norm`, `accumulate`: as of `TrainingConfig`.

    With `mm4flow` the flow encoder is one of MM4flow's, and learns in phase 1 with the rest (`training.traces.joint`);
    `flow_labels` is the weight of the flows' labels beside the traces' there, `mask_lengths` the share of lengths that
    read `[MASK]`, `background_share` that of draws that are background where there is any.
    `min_captures`: labels of fewer are not learned.
    """

    network: TracegramNetwork = SMALL
    features: TracegramFeatures = TracegramFeatures(max_tokens=256)
    trace: TraceSettings = TraceSettings(subject="mac")
    pretrain: Phase = Phase(10, 2400, 16, 3e-3)
    tune: Phase = Phase(12, 2560, 16, 3e-3)
    traces: Phase = Phase(160, 512, 16, 1e-2)
    pretrain_augmentation: FlowAugmentation = FlowAugmentation(prefix=0.0, random_tokens=0.0)
    flow_augmentation: FlowAugmentation = FlowAugmentation()
    trace_augmentation: TraceAugmentation = TraceAugmentation()
    bag: BagTraining = BagTraining()
    next_token: float = 0.0
    lengths: float = 0.5
    label_smoothing: float = 0.05
    weight_decay: float = 0.05
    capture_power: float = 0.5
    mm4flow: OwnMm4flow | None = None
    flow_labels: float = 0.3
    mask_lengths: _Share = 0.05
    background_share: _Share = 0.15
    min_captures: Annotated[int, msgspec.Meta(ge=2)] = 2
    clip_norm: float = 1.0
    accumulate: int = 1
    seed: int = 0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "cpu"

    def loop(self, phase: Phase) -> TrainingConfig:
        """The settings of the common loop for a phase."""
        return TrainingConfig(
            batch_flows=phase.batch, epochs=phase.epochs, learning_rate=phase.learning_rate, draws=phase.draws,
            seed=self.seed, weight_decay=self.weight_decay, clip_norm=self.clip_norm, accumulate=self.accumulate,
            label_smoothing=self.label_smoothing, threads=self.threads, device=self.device,
        )  # fmt: skip


def decisive(config: TraceTrainingConfig, *, background: bool) -> dict[str, Any]:
    """The settings that decide what is learned, to be hashed: not how many threads and what device compute it, nor how
    often background is drawn where there is none."""
    settings: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(config, threads=1, device="auto"))
    if not background:
        del settings["background_share"]
    return settings


def context_config(trace: TraceSettings, fields: Sequence[Field]) -> TraceTrainingConfig:
    """The settings of training a network that reads these fields of the context of flows, and nothing else of them."""
    network = msgspec.structs.replace(
        SMALL, encoder="context", feature_size=CONTEXT_WIDTH, context=tuple(fields), bag=True
    )
    augmentation = TraceAugmentation(
        drop_flows=0.3, most_flows=40, part=0.1, short_parts=True, drop_values=0.1, feature_dropout=0.0, views=0
    )
    return TraceTrainingConfig(
        network=network, trace=trace, traces=Phase(20, 512, 32, 3e-3), trace_augmentation=augmentation
    )


def joint_config(network: Mm4flowNetwork, features: Mm4flowFeatures) -> TraceTrainingConfig:
    """The settings of training with an MM4flow encoder of these sizes that reads these features of a flow."""
    return TraceTrainingConfig(
        network=msgspec.structs.replace(
            SMALL, encoder="mm4flow", feature_size=2 * network.d_model, context=BESIDE_LENGTHS, bag=True
        ),
        mm4flow=OwnMm4flow(network, features),
        traces=Phase(50, 512, 16, 2e-3),
        trace_augmentation=TraceAugmentation(
            drop_flows=0.3,
            most_flows=40,
            part=0.1,
            short_parts=True,
            jitter_times=0.3,
            feature_dropout=0.0,
            views=0,
        ),
    )
