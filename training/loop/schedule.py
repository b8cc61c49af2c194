"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math

WARMUP_STEPS = 100


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over `WARMUP_STEPS`, multiplied by half a cosine down to 0 at `steps`."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
