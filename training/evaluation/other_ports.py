"""Flows with ports that are not theirs: random ones, and those of other flows as one who hides would take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tapline.models.context import WITH_PORTS
from tapline.training.data.store import StoredFlows

FIRST_RANDOM, AFTER_RANDOM = 1024, 65_536
FORGED = ("tcp", "udp")


def random_ports(flows: StoredFlows, rng: np.random.Generator) -> StoredFlows:
    """The flows with both ports drawn uniformly from those that nobody registers with the system, where there are
    ports."""
    ports = flows.ports
    there = np.isin(flows.transports, [i for i, name in enumerate(flows.transport_names) if name in WITH_PORTS])
    ports[there] = rng.integers(FIRST_RANDOM, AFTER_RANDOM, (int(there.sum()), 2))
    return flows.with_ports(ports)


def forged_ports(flows: StoredFlows, truth: NDArray[np.int64], rng: np.random.Generator) -> StoredFlows:
    """The flows of TCP and UDP, classes `truth` int64 [n], each with the ports of another one of its transport, whose
    class is drawn first, all that are there equally often."""
    ports = flows.ports
    own = ports.copy()
    for place, name in enumerate(flows.transport_names):
        mine = np.flatnonzero(flows.transports == place)
        if name not in FORGED or len(mine) < 2:
            continue
        order = mine[np.argsort(truth[mine], kind="stable")]
        _, first, count = np.unique(truth[order], return_index=True, return_counts=True)
        drawn = rng.integers(0, len(first), len(order))
        source = first[drawn] + rng.integers(0, count[drawn])
        itself = source == np.arange(len(order))
        source[itself] = (source[itself] + 1) % len(order)
        ports[order] = own[order[source]]
    return flows.with_ports(ports)
