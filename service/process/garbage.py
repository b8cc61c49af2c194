"""The garbage collector of a process that works on many flows."""

import gc

YOUNG_OBJECTS = 20_000
"""New objects by which it looks for garbage among them. What a flow takes on its way is gone by then without it: a
twentieth of the work of the live path, and of `tapline classify`, was looking through flows under way."""


def spare_what_is_loaded() -> None:
    """Let it pass over all that there is now, which stays, and look at new objects seldom: a look at everything holds
    requests up for 100 ms."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
