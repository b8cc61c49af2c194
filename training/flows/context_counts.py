"""The context of flows, counted over the captures of a training set: which transport and port had which classes.

What the counts are worth in a verdict is `models.context`'s; a fold counts its own training set, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tapline.models.context import MAX_CELLS, MAX_HELD, WITH_PORTS, FlowContext, PortPrior, transport_of
from tapline.models.flow import Flow
from tapline.training.data.batches import TrainingSet
from tapline.training.data.store import StoredFlows

Holders = dict[str, dict[int, dict[int, int]]]


def learn_context(data: TrainingSet, port_weight: float) -> FlowContext:
    """The transports that each class of `data` was seen on and, of responder ports, how many captures hold which class
    there; without ports where `port_weight` is 0. `data` has captures then."""
    names, transport = transports_of(data.flows)
    seen = np.unique(np.stack((transport, data.truth), axis=1), axis=0)
    transports = {names[each]: seen[seen[:, 0] == each, 1].tolist() for each in np.unique(seen[:, 0]).tolist()}
    ports = PortPrior(_holders(data, names, transport), port_weight) if port_weight else None
    return FlowContext(transports, ports)


def allowed_classes(data: TrainingSet, n_class: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The classes that each transport allows, bool [transports, classes], and the transport of each flow, int64 [n].

    A class is allowed where a flow of it was seen; what is no label (`data.n_label`) is allowed everywhere.
    """
    names, transport = transports_of(data.flows)
    allowed = np.zeros((len(names), n_class), np.bool_)
    allowed[transport, data.truth] = True
    if data.n_label is not None:
        allowed[:, data.n_label :] = True
    return allowed, transport


def transports_of(flows: Sequence[Flow]) -> tuple[list[str], NDArray[np.int64]]:
    """The names of transports, and for each flow the place of its own among them, int64 [n]."""
    if isinstance(flows, StoredFlows):
        return list(flows.transport_names), flows.transports.astype(np.int64)
    names, place = np.unique(np.array([transport_of(flow) for flow in flows], np.str_), return_inverse=True)
    return names.tolist(), place.astype(np.int64)


def _holders(data: TrainingSet, names: Sequence[str], transport: NDArray[np.int64]) -> Holders:
    """By transport and responder port the number of captures that hold each class there: of the pairs of a port and a
    class that a checkpoint has room for, those that most captures hold."""
    n_class = int(data.truth.max()) + 2
    room = min(MAX_HELD, MAX_CELLS // n_class - len(names))
    ports = data.flows.ports if isinstance(data.flows, StoredFlows) else [(f.orig_p, f.resp_p) for f in data.flows]
    rows = np.stack((transport, np.asarray(ports, np.int64).reshape(-1, 2)[:, 1], data.truth, data.captures), axis=1)
    rows = rows[np.isin(transport, [place for place, name in enumerate(names) if name in WITH_PORTS])]
    held, captures = np.unique(np.unique(rows, axis=0)[:, :3], axis=0, return_counts=True)
    most = np.sort(np.argsort(-captures, kind="stable")[:room])
    holders: Holders = {}
    for (place, port, number), count in zip(held[most].tolist(), captures[most].tolist(), strict=True):
        holders.setdefault(names[place], {}).setdefault(port, {})[number] = count
    return holders
