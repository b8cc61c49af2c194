"""Where engines compute: the GPUs that are there, those that were chosen, the CPU, or simulated GPUs.

Simulated ones are for a machine without any: everything runs as with that many GPUs, an engine for each, on the CPU,
and says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

MOST_DEVICES = 64
_SIMULATED = "simulated:"


class Device(NamedTuple):
    """Where one engine computes: on the GPU of that number, None for the CPU. A simulated one is the CPU in fact."""

    gpu: int | None = 0
    simulated: bool = False

    def said(self, provider: str) -> str:
        """What computes, as engines say it, where `provider` does."""
        return f"{provider} in the place of GPU {self.gpu}" if self.simulated else provider


FIRST_GPU = Device()
"""Where an engine computes that nobody chose a place for; the CPU where there is no GPU."""


def parse_devices(text: str) -> list[Device] | None:
    """What a setting says: `auto` (None: all that are there), `cpu`, numbers of GPUs as `0,2`, or `simulated:N`.

    Raises:
        ValueError: it is none of them; says what was expected.
    """
    if text == "auto":
        return None
    if text == "cpu":
        return [Device(None)]
    count = text.removeprefix(_SIMULATED)
    if count != text and count.isdecimal() and 0 < int(count) <= MOST_DEVICES:
        return [Device(number, simulated=True) for number in range(int(count))]
    numbers = [part.strip() for part in text.split(",")]
    if all(number.isdecimal() and len(number) < 4 for number in numbers) and len(set(numbers)) == len(numbers):
        return [Device(int(number)) for number in numbers[:MOST_DEVICES]]
    raise ValueError("expected auto, cpu, numbers of GPUs (0,1) or simulated:N")


def visible_gpus(count_gpus: Callable[[], int]) -> int:
    """How many of the machine's GPUs CUDA shows to this process: all, or those that `CUDA_VISIBLE_DEVICES` names."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return count_gpus()
    named = [name.strip() for name in shown.split(",") if name.strip()]
    hidden = next((place for place, name in enumerate(named) if name.startswith("-")), len(named))
    return min(hidden, count_gpus())  # CUDA ends the list at the first name that is none
