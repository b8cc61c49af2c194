"""The simpler models that a network must beat, on the same captures.

Of flows a tree ensemble on lengths and leading bytes, a random forest on flow statistics, and a table of server ports;
of traces tree ensembles on header fields and on packet sizes, which read a trace as named numbers: summaries, and how
often each value of a field occurs. Addresses are not read.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer

from tapline.models.context import WITH_PORTS
from tapline.models.flow import Flow, PacketHead
from tapline.models.trace import Trace

LENGTHS = 16
CONTENT_BYTES = 48
FLOW_TREES = 300

TRACE_TREES = 500
FIRST_FLOWS = 12
FIRST_LENGTHS = 4
FIRST_SIZES = 40
ETHERNET, IPV4_MIN, TCP_MIN = 14, 20, 20
PORTS = (53, 67, 68, 80, 123, 137, 443, 1900, 3475, 5353, 5355, 8080, 8443)
"""Responder ports that are a class of their own; the rest are low or high."""

_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17}
"""IP protocols that flows call by their name."""

Numbers = dict[str, float]
Baseline = Literal["header", "sizes"]


def columns(flows: Sequence[Flow]) -> NDArray[np.int16]:
    """The first `LENGTHS` signed lengths and `CONTENT_BYTES` bytes each way; absent is 0 for lengths, -1 for bytes."""
    table = np.full((len(flows), LENGTHS + 2 * CONTENT_BYTES), -1, np.int16)
    table[:, :LENGTHS] = 0
    for row, flow in zip(table, flows, strict=True):
        lengths = np.clip(flow.payload_lengths[:LENGTHS], -32768, 32767)
        row[: len(lengths)] = lengths
        for start, content in ((LENGTHS, flow.orig_bytes), (LENGTHS + CONTENT_BYTES, flow.resp_bytes)):
            head = np.frombuffer(content[:CONTENT_BYTES], np.uint8)
            row[start : start + len(head)] = head
    return table


def context_columns(flows: Sequence[Flow]) -> NDArray[np.int32]:
    """`columns` with what a flow's context is: the number of its IP protocol, and both ports."""
    context = [(_NUMBERS.get(flow.proto) or int(flow.proto), flow.orig_p, flow.resp_p) for flow in flows]
    return np.hstack((columns(flows).astype(np.int32), np.array(context, np.int32).reshape(-1, 3)))


def fit_trees(
    table: NDArray[np.integer[Any]], truth: NDArray[np.int64], seed: int, processes: int = 1
) -> ExtraTreesClassifier:
    """Fit the ensemble on `columns` or `context_columns`, classes balanced by weight."""
    trees = ExtraTreesClassifier(FLOW_TREES, class_weight="balanced", random_state=seed, n_jobs=processes)
    return trees.fit(table, truth)


def statistics(flows: Sequence[Flow]) -> NDArray[np.float32]:
    """What flow records tell without content, float32 [n, 14]: of each direction the number of payload packets and the
    sum, mean, deviation, least and greatest of their lengths; the first length; how often the direction changes."""
    table = np.zeros((len(flows), 14), np.float32)
    for row, flow in zip(table, flows, strict=True):
        lengths = np.array(flow.payload_lengths, np.float32)
        for start, side in ((0, lengths[lengths > 0]), (6, -lengths[lengths < 0])):
            if len(side):
                row[start : start + 6] = len(side), side.sum(), side.mean(), side.std(), side.min(), side.max()
        row[12] = lengths[0] if len(lengths) else 0
        row[13] = np.count_nonzero(np.diff(np.sign(lengths)))
    return table


def fit_forest(
    flows: Sequence[Flow], truth: NDArray[np.int64], seed: int, processes: int = 1
) -> RandomForestClassifier:
    """Fit a random forest on `statistics`, classes balanced by weight."""
    forest = RandomForestClassifier(FLOW_TREES, class_weight="balanced_subsample", random_state=seed, n_jobs=processes)
    return forest.fit(statistics(flows), truth)


class PortTable:
    """Names a flow by its transport and server port alone, as the most of the captures do that hold the port."""

    def __init__(self, flows: Sequence[Flow], truth: NDArray[np.int64], captures: NDArray[np.integer[Any]]) -> None:
        """Learn from n flows with the index of their class, int64 [n], and the number of their capture, [n]."""
        holders: defaultdict[tuple[str, int], Counter[int]] = defaultdict(Counter)
        seen = {
            (flow.proto, flow.resp_p if flow.proto in WITH_PORTS else 0, label, capture)
            for flow, label, capture in zip(flows, truth.tolist(), captures.tolist(), strict=True)
        }
        for proto, port, label, _ in seen:
            holders[proto, port][label] += 1
        self._class_of = {key: min(found, key=lambda label: (-found[label], label)) for key, found in holders.items()}

    def predict(self, flows: Sequence[Flow], nothing: int) -> NDArray[np.int64]:
        """The class of each flow, int64 [n], `nothing` where no capture holds its port; the originator's port counts
        where the responder's says nothing, as where a capture began in the middle."""
        return np.array([self._of(flow, nothing) for flow in flows], np.int64)

    def _of(self, flow: Flow, nothing: int) -> int:
        ports = (flow.resp_p, flow.orig_p) if flow.proto in WITH_PORTS else (0,)
        known = (self._class_of.get((flow.proto, port)) for port in ports)
        return next((label for label in known if label is not None), nothing)


def fit_predict(
    kind: Baseline,
    train: Sequence[Trace],
    truth: NDArray[np.int64],
    held: Sequence[Trace],
    classes: int,
    seed: int,
) -> NDArray[np.float64]:
    """Train an ensemble, classes balanced by weight, on `train`; give the trees' shares on `held` [m, C]."""
    read = header_numbers if kind == "header" else size_numbers
    vectors = DictVectorizer(dtype=np.float32, sparse=False)
    table = vectors.fit_transform([read(trace) for trace in train])
    trees = ExtraTreesClassifier(TRACE_TREES, class_weight="balanced", random_state=seed)
    trees.fit(table[:, _shared(table)], truth)
    shares = np.zeros((len(held), classes))
    shares[:, trees.classes_] = trees.predict_proba(
        vectors.transform([read(trace) for trace in held])[:, _shared(table)]
    )
    return shares


def _shared(table: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Columns that are set in more than one trace: the others are noise that the trees would draw from. Bool [C]."""
    shared = np.asarray((table != 0).sum(axis=0) > 1)
    return shared if shared.any() else np.ones(table.shape[1], np.bool_)


def size_numbers(trace: Trace) -> Numbers:
    """Packet sizes of a trace: how often each signed payload length occurs, the first ones in order, summaries."""
    lengths = [length for flow in trace.flows for length in flow.payload_lengths]
    numbers = Counter[str](f"length {length}" for length in lengths)
    return {
        **numbers,
        **{f"size {place}": float(length) for place, length in enumerate(lengths[:FIRST_SIZES])},
        **_summary("up", [length for length in lengths if length > 0]),
        **_summary("down", [-length for length in lengths if length < 0]),
        "flows": float(len(trace.flows)),
    }


def header_numbers(trace: Trace) -> Numbers:
    """Everything that headers say of a trace: sizes, TTL, windows, TCP options, flags, ports by class, times."""
    flows = trace.flows
    starts = [flow.start_us / 1e6 for flow in flows]
    values: dict[str, Sequence[float]] = {
        "gap": list(np.diff(starts)),
        "duration": [flow.duration_us / 1e6 for flow in flows],
        "packet gap": [head.gap_us / 1e6 for flow in flows for head in flow.heads],
        "payload up": [length for flow in flows for length in flow.payload_lengths if length > 0],
        "payload down": [-length for flow in flows for length in flow.payload_lengths if length < 0],
        **{
            name: [getattr(flow, name) for flow in flows]
            for name in ("up", "down", "orig_ip_bytes", "resp_ip_bytes", "orig_pkts", "resp_pkts")
        },
    }
    numbers: Counter[str] = Counter()
    for flow in flows:
        _count_flow(flow, numbers)
    result: Numbers = {**numbers, "flows": float(len(flows)), "seconds": starts[-1] - starts[0] if starts else 0.0}
    for name, sample in values.items():
        result |= _summary(name, sample)
    for place, flow in enumerate(flows[:FIRST_FLOWS]):
        result[f"port of flow {place}"] = float(_port_class(flow.resp_p)) + 1
        for index, length in enumerate(flow.payload_lengths[:FIRST_LENGTHS]):
            result[f"size {index} of flow {place}"] = float(length)
    return result


def _count_flow(flow: Flow, numbers: Counter[str]) -> None:
    port = _port_class(flow.resp_p)
    numbers[f"{flow.proto} port {port}"] += 1
    numbers[f"{flow.proto}"] += 1
    numbers[f"state {flow.conn_state}"] += 1
    numbers["IPv6"] += ":" in flow.orig_h
    for length in flow.payload_lengths:
        numbers[f"length {length}"] += 1
        numbers[f"{flow.proto} port {port} length {length}"] += 1
    if ":" not in flow.orig_h:
        originator = ipaddress.IPv4Address(flow.orig_h).packed
        for head in flow.heads:
            numbers.update(_header_fields(head, originator))


def _header_fields(head: PacketHead, originator: bytes) -> list[str]:
    """Fields of an IPv4 packet in an Ethernet frame (RFC 791, RFC 9293), each with its direction and value."""
    data = head.data
    if len(data) < ETHERNET + IPV4_MIN or data[12:14] != b"\x08\x00":
        return []
    way = "up" if data[26:30] == originator else "down"
    protocol, transport = data[23], ETHERNET + 4 * (data[14] & 15)
    fields = [
        f"{way} TTL {data[22]}",
        f"{way} TOS {data[15]}",
        f"{way} flags {data[20] >> 5} of {protocol}",
        f"{way} IP length {int.from_bytes(data[16:18])} of {protocol}",
    ]
    if protocol == 6 and len(data) >= transport + TCP_MIN:
        options = data[transport + TCP_MIN : transport + 4 * (data[transport + 12] >> 4)]
        fields.append(f"{way} window {int.from_bytes(data[transport + 14 : transport + 16])}")
        fields += [f"{way} {field}" for field in _tcp_options(options, data[transport + 13])]
    return fields


def _tcp_options(options: bytes, flags: int) -> list[str]:
    """The kinds in order, maximum segment size and window scale; what is cut or malformed ends the list."""
    kinds: list[int] = []
    fields: list[str] = []
    place = 0
    while place < len(options):
        kind = options[place]
        kinds.append(kind)
        if kind == 0:
            break
        length = 1 if kind == 1 else int.from_bytes(options[place + 1 : place + 2])
        if length < 1:
            break
        if kind == 2:
            fields.append(f"MSS {int.from_bytes(options[place + 2 : place + 4])}")
        elif kind == 3:
            fields.append(f"window scale {int.from_bytes(options[place + 2 : place + 3])}")
        place += length
    return [f"options {kinds} SYN {flags & 2}", *fields]


def _port_class(port: int) -> int:
    if port in PORTS:
        return PORTS.index(port)
    return len(PORTS) + (port >= 1024)


def _summary(name: str, values: Sequence[float]) -> Numbers:
    if not len(values):
        return {}
    array = np.asarray(values, np.float64)
    return {
        f"{name} count": float(len(array)),
        f"{name} mean": float(array.mean()),
        f"{name} deviation": float(array.std()),
        f"{name} least": float(array.min()),
        f"{name} median": float(np.median(array)),
        f"{name} most": float(array.max()),
        f"{name} sum": float(array.sum()),
    }
