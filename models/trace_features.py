"""What trace models read of a trace beside its flows' features: when the flows came and how long they took."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_US = 1e-6


def trace_times(start_us: NDArray[np.int64], duration_us: NDArray[np.int64]) -> NDArray[np.float32]:
    """Times of a trace's k flows, in order, as the networks read them, float32 [k, 2].

    Column 0 is log(1 + seconds since the start of the flow before), 0 for the first; column 1 log(1 + duration in
    seconds). `start_us` and `duration_us` are int64 [k], microseconds.
    """
    gaps_us = np.diff(start_us, prepend=start_us[:1])
    times = np.stack((gaps_us, duration_us), axis=1) * _US
    return np.log1p(np.maximum(times, 0)).astype(np.float32)
