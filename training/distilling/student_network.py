"""The student of `models.student` in torch, as it learns: with the whole numbers that it will have, and gradients.

Weights are rounded on the way forward and not on the way back (straight-through estimator, Bengio et al., 2013,
arXiv 1308.3432), so that what is learned is what is served.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.student import (
    ACTIVATION_LEVELS,
    HIDDEN_UNIT,
    LARGEST,
    LARGEST_BIAS,
    LARGEST_TABLE_BIAS,
    OUTPUT_UNIT,
    TABLE_UNIT,
    VALUES,
    StudentNetwork,
    StudentWeights,
)

TABLE_SPREAD, TABLE_BIAS = 0.05, 0.5
"""Standard deviation of the table at the start, and its bias: hidden numbers are above 0 then."""


class LearningStudent(nn.Module):
    """Logits float [B, classes] and embeddings float [B, width] of the symbols of B flows, int64 [B, fields]."""

    def __init__(self, network: StudentNetwork, n_class: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(network.fields * VALUES, network.table_width) * TABLE_SPREAD)
        self.table_bias = nn.Parameter(torch.full((network.table_width,), TABLE_BIAS))
        self.hidden = nn.Linear(network.table_width, network.hidden_width)
        self.outputs = nn.Linear(network.hidden_width, n_class + width)
        self.register_buffer("starts", torch.arange(network.fields) * VALUES)
        self._network, self._n_class = network, n_class

    def forward(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        rows = functional.embedding_bag(
            symbols + self.get_buffer("starts"), _rounded(self.table, TABLE_UNIT), mode="sum"
        )
        first = _levels(rows + _rounded(self.table_bias, TABLE_UNIT, LARGEST_TABLE_BIAS))
        second = _levels(functional.linear(first, _rounded(self.hidden.weight, HIDDEN_UNIT), self.hidden.bias))
        found = functional.linear(second, _rounded(self.outputs.weight, OUTPUT_UNIT), self.outputs.bias)
        return found[:, : self._n_class], found[:, self._n_class :]

    def weights(self) -> StudentWeights:
        """The whole numbers that it learned."""
        network, split = self._network, self._n_class
        hidden = _whole(self.hidden.weight, HIDDEN_UNIT)
        outputs = _whole(self.outputs.weight, OUTPUT_UNIT)
        outputs_bias = _whole(self.outputs.bias, TABLE_UNIT * OUTPUT_UNIT, LARGEST_BIAS)
        table = _whole(self.table, TABLE_UNIT).reshape(network.fields, VALUES, network.table_width)
        return StudentWeights(
            table=table.astype(np.int8),
            table_bias=_whole(self.table_bias, TABLE_UNIT, LARGEST_TABLE_BIAS),
            hidden=hidden.astype(np.int8),
            hidden_bias=_whole(self.hidden.bias, TABLE_UNIT * HIDDEN_UNIT, LARGEST_BIAS),
            logits=outputs[:split].astype(np.int8),
            logits_bias=outputs_bias[:split],
            embedding=outputs[split:].astype(np.int8),
            embedding_bias=outputs_bias[split:],
        )


def _straight(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `value`."""
    return value + (rounded - value).detach()


def _rounded(weights: Tensor, unit: int, largest: int = LARGEST) -> Tensor:
    scaled = (weights * unit).clamp(-largest, largest)
    return _straight(scaled, scaled.round()) / unit


def _levels(values: Tensor) -> Tensor:
    scaled = (values * TABLE_UNIT).clamp(0, ACTIVATION_LEVELS)
    return _straight(scaled, scaled.floor()) / TABLE_UNIT


def _whole(weights: Tensor, unit: int, largest: int = LARGEST) -> NDArray[Any]:
    return (weights.detach() * unit).clamp(-largest, largest).round().to(torch.int32).numpy()
