"""The ways of training trace models that are measured beside a run's own settings, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from torch import Tensor

from tapline.models.checkpoint import TracegramNetwork
from tapline.training.data.labelled_traces import LabelledTrace
from tapline.training.loop.config import TrainingError
from tapline.training.traces.flow_embeddings import flow_embedding_width
from tapline.training.traces.trace_config import JOINT_CONTENT, TraceTrainingConfig, encoder_features

MAIN, UNKNOWN, NO_BACKGROUND, NO_BAG = "main", "unknown", "no-background", "no-bag"
TREES: Mapping[str, Literal["header", "sizes"]] = {"trees-header": "header", "trees-sizes": "sizes"}
FEW = (1, 2, 5)
VARIANTS = (
    MAIN, *TREES, "no-time", NO_BAG, "scratch", "payload", "tracegram", "tracegram-scratch", "frozen", UNKNOWN,
    NO_BACKGROUND,
    *(f"{name}-{few}" for few in FEW for name in (MAIN, "scratch", *TREES)),
)  # fmt: skip
"""What can be measured: the run's settings, tree ensembles, without time encoding,
without the bag of values, without pre-training, with content
bytes (own addresses masked), the published encoder with and without pre-training, the flow checkpoint's embedding of
payload lengths as it ships, with devices left out, without the run's background; and with 1, 2, 5 captures of each
device. Only `main` and `unknown` learn the run's background: the others compare what is read, and how."""

DEFAULT_VARIANTS = (MAIN, *TREES)


@dataclass(frozen=True)
class Variant:
    """One way of training that is measured.

    `start`: pre-trained weights of the flow encoder, None without. `captures`: so many of each device to learn from, 0
    all. `left_out`: devices that are not learned, whose confidences are kept. `frozen`: the encoder is the embedding of
    the flow checkpoint as it ships. `trees`: a tree ensemble instead. `background`: traces of anything else; each fold
    learns one half of their captures as a class after the labels, and is measured on the other. Only `main` and
    `unknown` of a run with an MM4flow encoder have it: the other variants compare what is read, and how.
    """

    name: str
    config: TraceTrainingConfig
    start: Mapping[str, Tensor] | None = None
    captures: int = 0
    left_out: tuple[str, ...] = ()
    frozen: bool = False
    trees: Literal["", "header", "sizes"] = ""
    background: Sequence[LabelledTrace] = ()


@dataclass(frozen=True)
class Starts:
    """Pre-trained weights: of the encoder of the run that is measured, and of the published one."""

    main: Mapping[str, Tensor] | None = None
    packets: Mapping[str, Tensor] | None = None


def variant_of(
    name: str,
    config: TraceTrainingConfig,
    left_out: tuple[str, ...] = (),
    starts: Starts | None = None,
    background: Sequence[LabelledTrace] = (),
) -> Variant:
    """The variant of this name; `main` and `unknown` alone learn the background.

    Raises:
        TrainingError: there is none, or it needs a pre-trained encoder that is not given.
    """
    if name not in VARIANTS:
        raise TrainingError(f"no variant {name!r}: expected one of {', '.join(VARIANTS)}")
    starts = starts or Starts()
    kind, few = kind_of(name)
    if kind == "tracegram" and starts.packets is None:
        raise TrainingError("the variant tracegram is pre-trained: give its run of pretrain-packets")
    if kind == "scratch" and config.network.encoder == "context":
        raise TrainingError("the variant scratch is of a run with an encoder")
    plain = TraceTrainingConfig(trace=config.trace, seed=config.seed, threads=config.threads, device=config.device)
    published = _with(plain, n_class=config.network.n_class)
    changes: dict[str, dict[str, Any]] = {
        **{trees: {"trees": reads} for trees, reads in TREES.items()},
        NO_BAG: {"config": _with(config, bag=False)},
        "no-time": {"config": _with(config, time_encoding=False)},
        "scratch": {"start": None},
        "tracegram": {"config": published, "start": starts.packets},
        "tracegram-scratch": {"config": published, "start": None},
        UNKNOWN: {"left_out": left_out, "background": background},
        MAIN: {"background": () if few else background},
    }
    if kind == "payload":
        changes[kind] = {"config": _with_content(config)}
    elif kind == "frozen":
        width = flow_embedding_width()
        changes[kind] = {"frozen": True, "config": _with(published, encoder="mm4flow", feature_size=width)}
    return replace(Variant(name, config, starts.main, captures=few), **changes.get(kind, {}))


def kind_of(name: str) -> tuple[str, int]:
    """What a variant is, and the captures of each label that it learns from, 0 for all."""
    few = re.search(r"-(\d+)$", name)
    return (name.removesuffix(few[0]), int(few[1])) if few else (name, 0)


def reference_of(name: str) -> str:
    """The trees on header fields that learned from as many captures."""
    _, few = kind_of(name)
    return f"trees-header-{few}" if few else "trees-header"


def _with(config: TraceTrainingConfig, **changes: object) -> TraceTrainingConfig:
    """The settings with another network."""
    network: TracegramNetwork = msgspec.structs.replace(config.network, **changes)
    return msgspec.structs.replace(config, network=network)


def _with_content(config: TraceTrainingConfig) -> TraceTrainingConfig:
    """The settings with an encoder that reads content bytes too."""
    if config.mm4flow is None:
        raise TrainingError("the variant payload is of a run with an MM4flow encoder")
    reads = encoder_features(config.mm4flow.features.payload_lengths, JOINT_CONTENT)
    return msgspec.structs.replace(config, mm4flow=msgspec.structs.replace(config.mm4flow, features=reads))
