"""CPU time of a piece of work in this process, which other work on the machine disturbs less than wall time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of `run`, warm-up apart."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)
