"""What the IP protocol and the ports of a flow say of its label, beside the two modalities that MM4flow reads.

Both are kept out of the network: counts over the captures of the training, added to its logits. So a port can be left
out of a verdict, the verdict can say what the port alone would have said, and what a forged port is worth is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import Flow

WITH_PORTS = frozenset({"tcp", "udp", "132"})
"""Transports that have ports, SCTP by its number; the ports of others say nothing."""

BARRED = -50.0
"""Added to the logit of a class that was never seen on the flow's transport."""

EFFECTIVE_PORTS = 20
"""A port that a class was never seen on counts as one of so many: the fewer, the less a port is worth."""

LEAST_NEW = 0.1
"""The least share of a class's captures that are expected on a port where it was never seen, however many there were:
with the weight this bounds the worth of a forged port to 5.2 times the weight, in logits."""

MAX_HELD = 65_536
"""Most classes on ports of a context, those of all ports together."""

MAX_CELLS = 1 << 24
"""Most numbers of a context that is ready for flows: one for each class on each of its transports and ports."""

LEAST_SAID = 2
"""Captures that must hold the label which a port says: what one capture had on a passing port says nothing."""

_ICMPV6 = "58"

_ONCE = 0.3
"""Added to the ports that a class was seen on once; a class that was seen on none is expected on a new one by half."""

_Class = Annotated[int, msgspec.Meta(ge=0, le=65536)]
_Captures = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Transport = Annotated[str, msgspec.Meta(pattern="^(tcp|udp|icmp|[0-9]{1,3})$")]
_PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]


def transport_of(flow: Flow) -> str:
    """The transport of a flow as a context counts it: its `proto`, and the number of ICMPv6 between IPv6 addresses."""
    return _ICMPV6 if flow.proto == "icmp" and ":" in flow.orig_h else flow.proto


class PortPrior(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On which server ports which class was seen, and how much that weighs in a verdict.

    `holders` gives by transport and port the number of captures that hold each class there, a class by its place in the
    labels, the background one after them. A verdict without ports has a `temperature` and a `threshold` of its own.
    """

    holders: dict[_Transport, dict[_PortNumber, dict[_Class, _Captures]]]
    weight: Annotated[float, msgspec.Meta(ge=0, le=4)] = 1.0
    temperature: Annotated[float, msgspec.Meta(ge=0.01, le=100)] = 1.0
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    def __repr__(self) -> str:
        ports = sum(map(len, self.holders.values()))
        return f"<PortPrior of {ports} ports, weight {self.weight}>"


class FlowContext(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On which transports which classes were seen, and of ports a prior; None where ports are not read."""

    transports: dict[_Transport, list[_Class]]
    ports: PortPrior | None = None

    def classes(self) -> Iterator[int]:
        """The number of every class that occurs."""
        for seen in self.transports.values():
            yield from seen
        for ports in self.ports.holders.values() if self.ports else ():
            for held in ports.values():
                yield from held


def context_fault(context: FlowContext, n_class: int) -> str | None:
    """What is wrong with a context of a network of so many classes, beyond what its types refuse; None: nothing."""
    if (most := max(context.classes(), default=0)) >= n_class:
        return f"names class {most}, expected 0 to {n_class - 1}"
    for transport, seen in context.transports.items():
        if len(set(seen)) < len(seen):
            return f"names a class twice on transport {transport}, expected once"
    ports = [held for ports in (context.ports.holders if context.ports else {}).values() for held in ports.values()]
    if (found := sum(map(len, ports))) > MAX_HELD:
        return f"holds {found} classes on ports, expected {MAX_HELD} at most"
    if (cells := (len(ports) + len(context.transports)) * n_class) > MAX_CELLS:
        return f"takes {cells} numbers for its transports and ports, expected {MAX_CELLS} at most"
    return None


class SaidByPort(NamedTuple):
    """What a port says alone: the label that most captures hold on it, `LEAST_SAID` at least, and each label's share of
    the captures."""

    label: int
    shares: Mapping[int, float]


class ContextTerms:
    """A context made ready for flows: what it adds to logits, and what a port says alone."""

    def __init__(self, context: FlowContext, n_label: int, n_class: int) -> None:
        """`n_class` is `n_label`, or one more where there is a background class: nothing bars that."""
        self._n_label, self._n_class = n_label, n_class
        self._transports = {transport: row for row, transport in enumerate(context.transports, 1)}
        self._bars = np.array([self._bars_of(seen) for seen in ((), *context.transports.values())])
        holders = context.ports.holders if context.ports else {}
        weight = context.ports.weight if context.ports else 0.0
        self._by_port: dict[tuple[str, int], int] = {}
        self._new: dict[str, int] = {}
        self._said: dict[tuple[str, int], SaidByPort] = {}
        rows = [np.zeros(n_class, np.float32)]
        for transport in holders.keys() & WITH_PORTS:
            self._add_ports(transport, holders[transport], weight, rows)
        self._rows = np.array(rows)

    def _bars_of(self, seen: Sequence[int]) -> NDArray[np.float32]:
        row = np.full(self._n_class, BARRED, np.float32)
        row[[*seen]] = 0.0
        row[self._n_label :] = 0.0
        return row

    def _add_ports(
        self,
        transport: str,
        ports: Mapping[int, Mapping[int, int]],
        weight: float,
        rows: list[NDArray[np.float32]],
    ) -> None:
        captures, once = np.zeros(self._n_class), np.full(self._n_class, _ONCE)
        for held in ports.values():
            for number, count in held.items():
                captures[number] += count
                once[number] += count == 1
        new = np.clip(once / (captures + 2 * _ONCE), LEAST_NEW, 1.0)
        unseen = new / EFFECTIVE_PORTS
        self._new[transport] = len(rows)
        rows.append((weight * np.log(unseen)).astype(np.float32))
        for port, held in ports.items():
            likelihood = unseen.copy()
            for number, count in held.items():
                likelihood[number] += (1 - new[number]) * count / captures[number]
            self._by_port[transport, port] = len(rows)
            rows.append((weight * np.log(likelihood)).astype(np.float32))
            if (said := self._said_by(held)) is not None:
                self._said[transport, port] = said

    def _said_by(self, held: Mapping[int, int]) -> SaidByPort | None:
        labels = {number: count for number, count in held.items() if number < self._n_label}
        best = min(labels, key=lambda number: (-labels[number], number), default=None)
        if best is None or labels[best] < LEAST_SAID:
            return None
        total = sum(held.values())
        return SaidByPort(best, {number: count / total for number, count in labels.items()})

    def transports(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        """What transports add to the logits of n flows, float32 [n, classes]: 0, or `BARRED`.

        On a transport that no class was seen on every label is barred: only where there is a background does that
        change the verdict, to *unknown*.
        """
        rows = self._transports
        found: NDArray[np.float32] = self._bars[[rows.get(transport_of(flow), 0) for flow in flows]]
        return found

    def ports(self, flows: Sequence[Flow]) -> NDArray[np.float32]:
        """What ports add to the logits of n flows, float32 [n, classes]: the weighted log of how likely each class
        is to be served on such a port.

        The responder's port counts, or the originator's where that is known better, as where a capture began in the
        middle of a flow.
        """
        known, new = self._by_port, self._new
        responders = [known.get((flow.proto, flow.resp_p), 0) for flow in flows]
        originators = [known.get((flow.proto, flow.orig_p), 0) for flow in flows]
        first = [
            responder or originator or new.get(flow.proto, 0)
            for responder, originator, flow in zip(responders, originators, flows, strict=True)
        ]
        found: NDArray[np.float32] = self._rows[first]
        both = np.flatnonzero(np.array(responders, np.bool_) & np.array(originators, np.bool_))
        if len(both):
            found[both] = np.maximum(found[both], self._rows[np.array(originators)[both]])
        return found

    def said_by_port(self, flow: Flow) -> SaidByPort | None:
        """What the flow's server port says alone, None where no label was seen on it in `LEAST_SAID` captures; the
        originator's port counts where the responder's says nothing."""
        return self._said.get((flow.proto, flow.resp_p)) or self._said.get((flow.proto, flow.orig_p))
