"""A few seconds of the fuzz target for checkpoints; each case can be repeated by its seed."""

import random
import time

from tests.fuzz.checkpoints import case

SECONDS = 8.0
LEAST_CASES = 5


def test_changed_checkpoints():
    until, seed = time.monotonic() + SECONDS, 0
    while seed < LEAST_CASES or time.monotonic() < until:
        try:
            case(random.Random(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        seed += 1
