"""Dropout whose masks depend on the step and on a flow's place in its batch, not on who computes that flow.

Several processes, or one that computes a batch in parts, then drop what one process drops that computes it whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

UNITS = 8
"""Flows are dealt out to so many generators by their place. A process draws whole units and keeps its own flows: up to
`UNITS` processes and parts, as powers of two, draw nothing in vain."""


@dataclass(frozen=True)
class _Unit:
    """The flows of one generator among those computed here: their places here, and in the unit, of `size` flows."""

    generator: int
    size: int
    here: slice | Tensor
    inside: slice | Tensor


class Draws:
    """The random numbers of the dropout of a model, restarted by `begin` before every part of every batch."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device
        self._generators = [torch.Generator(device) for _ in range(UNITS + 1)]
        self._units: list[_Unit] = []
        self._n_rows = 0
        self.part = 0

    def begin(self, step: int, flows: int, rows: NDArray[np.int64]) -> None:
        """The next forward pass computes `rows`, int64 [n], of the `flows` flows of the batch of this step."""
        for number, generator in enumerate(self._generators):
            generator.manual_seed((self._seed * 1_000_003 + step) * len(self._generators) + number)
        self._n_rows = len(rows)
        self._units = []
        self.part += 1
        for unit in np.unique(rows % UNITS).tolist():
            here = np.flatnonzero(rows % UNITS == unit)
            size = -(-(flows - unit) // UNITS)
            places = (_index(each, self._device) for each in (here, rows[here] // UNITS))
            self._units.append(_Unit(unit, size, *places))

    def keep(self, states: Tensor, probability: float, *, shared: bool) -> Tensor:
        """What `states` [n, ...] is multiplied with: 0 with this probability, else 1 / (1 - probability).

        All but the first size are those of the whole batch. `shared`: `states` [1, ...] is one for all flows.
        """
        if shared:
            return self._draw(states, 1, probability, UNITS)
        if len(states) != self._n_rows:
            raise ValueError(f"dropout of {len(states)} flows, expected {self._n_rows}")
        kept = torch.empty_like(states)
        for unit in self._units:
            kept[unit.here] = self._draw(states, unit.size, probability, unit.generator)[unit.inside]
        return kept

    def _draw(self, states: Tensor, size: int, probability: float, generator: int) -> Tensor:
        mask = states.new_empty((size, *states.shape[1:]))
        return mask.bernoulli_(1 - probability, generator=self._generators[generator]).div_(1 - probability)


def _index(places: NDArray[np.int64], device: torch.device) -> slice | Tensor:
    """Increasing places as a slice where they are evenly spaced, which is read and written faster."""
    steps = np.diff(places)
    if len(steps) and (steps != steps[0]).any():
        return torch.from_numpy(places).to(device)
    return slice(int(places[0]), int(places[-1]) + 1, int(steps[0]) if len(steps) else 1)


class FlowDropout(nn.Dropout):
    """`nn.Dropout` with masks of `Draws`. `first_is_shared`: its first call of a forward pass is one row for all."""

    def __init__(self, probability: float, draws: Draws) -> None:
        super().__init__(probability)
        self.first_is_shared = False
        self._draws = draws
        self._part = 0

    def forward(self, states: Tensor) -> Tensor:
        """[n, ...] to the same shape, n the flows that `Draws.begin` was told of."""
        is_first, self._part = self._part != self._draws.part, self._draws.part
        if not self.training or not self.p:
            return states
        return states * self._draws.keep(states.detach(), self.p, shared=self.first_is_shared and is_first)


def by_flow(model: nn.Module, seed: int, device: torch.device) -> Draws:
    """Let every dropout of a model draw by flow, in place; gives what must be told of each batch."""
    draws = Draws(seed, device)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, FlowDropout(child.p, draws))
    return draws
