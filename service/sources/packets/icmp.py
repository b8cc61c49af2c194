"""Which ICMP types answer each other, as Zeek pairs them: the two types stand in for the ports of a flow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ONE_WAY = -1
_PAIRS_V4 = ((8, 0), (13, 14), (15, 16), (10, 9), (17, 18))
_PAIRS_V6 = ((128, 129), (133, 134), (135, 136), (130, 131), (139, 140), (144, 145))


def _table(pairs: tuple[tuple[int, int], ...]) -> npt.NDArray[np.int64]:
    table = np.full(256, ONE_WAY, dtype=np.int64)
    for first, second in pairs:
        table[first], table[second] = second, first
    return table


COUNTERPARTS_V4 = _table(_PAIRS_V4)
"""For each ICMP type its counterpart, or `ONE_WAY`. Shape (256,), int64."""

COUNTERPARTS_V6 = _table(_PAIRS_V6)
"""The same for ICMPv6."""
