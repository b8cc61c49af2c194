"""The settings of a training run of MM4flow, and the error that ends one."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import Mm4flowFeatures


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How training flows differ from the recorded ones; each is a probability, or a share drawn up to that bound."""

    prefix: float = 0.5
    """of cutting a flow to its first packets: what an early verdict sees"""
    no_content: float = 0.1
    """of leaving out the content of both directions"""
    one_way: float = 0.1
    """of keeping the packets of one direction only, as a tap on one side of an asymmetric route sees them"""
    swap: float = 0.1
    """of exchanging originator and responder, as where a capture starts in the middle of a flow"""
    mask_bytes: float = 0.5
    """largest share of content bytes replaced by `[MASK]`"""
    random_bytes: float = 0.2
    """largest share of content bytes replaced by random ones"""
    mask_lengths: float = 0.2
    """largest share of lengths replaced by `[MASK]`"""
    jitter_lengths: float = 0.1
    """standard deviation of the change of a length, relative to it"""


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides a training run, beside the data.

    * `epochs` of `draws` flows each. `class_power` and `capture_power`: see `training.data.batches.draw_weights`.
    * `background_share`: how often background flows are drawn, in units of an average class.
    * `port_weight`: of the prior on server ports in verdicts, 0 for none; no loss reads ports (`models.context`).
    * `frozen_epochs`: epochs with frozen encoders before `epochs` with everything (the published recipe: as many).
    * `clip_norm`: gradients longer than this are scaled down to it.
    * `accumulate`: parts that a batch is computed in, one after the other; the result is that of the whole batch.
    * `evaluations`, `saves`: so often in an epoch; `device`: `auto` takes a GPU where there is one.
    """

    d_model: int = 64
    n_head: int = 2
    n_layer: int = 2
    dim_ff: int = 256
    batch_flows: int = 32
    epochs: int = 100
    learning_rate: float = 2e-3
    seed: int = 0
    draws: int = 2048
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    class_power: float = 0.6
    capture_power: float = 0.5
    background_share: float = 5.0
    port_weight: float = 1.2
    threads: int = 1
    features: Mm4flowFeatures = Mm4flowFeatures(payload_lengths=32, content_bytes=64)
    augmentation: Augmentation = Augmentation()
    frozen_epochs: int = 0
    clip_norm: float = 1.0
    accumulate: int = 1
    evaluations: int = 1
    saves: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"


def steps_of(config: TrainingConfig) -> int:
    """Optimiser steps of a fine-tuning run, both stages together."""
    return (config.epochs + config.frozen_epochs) * math.ceil(config.draws / config.batch_flows)


def network_sizes(config: TrainingConfig, n_class: int) -> Mm4flowNetwork:
    """The sizes of the network for so many classes.

    Raises:
        TrainingError: the sizes do not go together.
    """
    try:
        return Mm4flowNetwork(config.d_model, config.n_layer, config.n_head, config.dim_ff, n_class)
    except ValueError as error:
        raise TrainingError(f"the network cannot have these sizes: {error}") from None
