"""Flows to learn from, kept on disk and mapped into memory: a corpus is never loaded whole. Reads feature directories.

A flow costs 63 bytes of memory here, whatever it holds; what it holds is in an unlinked file that the system pages in.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tapline.models.context import transport_of
from tapline.models.flow import Flow
from tapline.training.data.parquet import Sample
from tapline.training.data.samples import samples_of

Rows = NDArray[np.int64]
Ids = NDArray[np.uint64]


def id_of(capture: str, name: str) -> int:
    """Names a flow or trace wherever it is measured: a number of its capture, `corpus/capture`, and its name there."""
    return int.from_bytes(blake2b(f"{capture}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest())


def no_ids() -> Ids:
    """Those of nothing."""
    return np.zeros(0, np.uint64)


class StoredFlows(Sequence[Flow]):
    """Flows with what a flow model reads, payload lengths and content, and with transport and ports, which its rivals
    read. Everything else of a flow is left out.

    `lengths` int32 and `content` uint8 lie end to end; flow i has `lengths[ends[i, 0]:ends[i + 1, 0]]` and
    `content[ends[i, 1]:ends[i + 1, 1]]`, of which the first `forward[i]` bytes are the originator's. `ports` uint16
    [n, 2] are the originator's and the responder's, `transports` uint8 [n] places in `transport_names`.
    """

    def __init__(
        self,
        lengths: NDArray[np.int32],
        content: NDArray[np.uint8],
        ends: NDArray[np.int64],
        forward: NDArray[np.int16],
        ports: NDArray[np.uint16],
        transports: NDArray[np.uint8],
        transport_names: Sequence[str],
        rows: Rows,
    ) -> None:
        self._lengths, self._content, self._ends, self._forward = lengths, content, ends, forward
        self._ports, self._transports, self.transport_names = ports, transports, transport_names
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: NDArray[Any] | slice) -> StoredFlows:
        """The flows at these places (indices, or a bool for each), sharing the storage."""
        taken = copy(self)
        taken.rows = self.rows[index]
        return taken

    @property
    def ports(self) -> NDArray[np.uint16]:
        """The ports of originator and responder, uint16 [n, 2]."""
        return self._ports[self.rows]

    @property
    def transports(self) -> NDArray[np.uint8]:
        """The place of each flow's transport in `transport_names`, uint8 [n]."""
        return self._transports[self.rows]

    def with_ports(self, ports: NDArray[np.uint16]) -> StoredFlows:
        """The same flows with other ports, uint16 [n, 2], sharing all other storage."""
        changed = copy(self)
        changed._ports = self._ports.copy()
        changed._ports[self.rows] = ports
        return changed

    @overload
    def __getitem__(self, index: int) -> Flow: ...
    @overload
    def __getitem__(self, index: slice) -> StoredFlows: ...
    def __getitem__(self, index: int | slice) -> Flow | StoredFlows:
        if isinstance(index, slice):
            return self.take(index)
        row = int(self.rows[index])
        (first, start), (last, end) = self._ends[row : row + 2].tolist()
        lengths = self._lengths[first:last].tolist()
        content = self._content[start:end].tobytes()
        up = sum(length > 0 for length in lengths)
        middle = int(self._forward[row])
        orig_p, resp_p = self._ports[row].tolist()
        transport = self.transport_names[self._transports[row]]
        sides = content[:middle], content[middle:]
        return Flow("", 0, 0, "", orig_p, "", resp_p, transport, up, len(lengths) - up, lengths, *sides)

    def kinds(self, payload_lengths: int, content_bytes: int) -> NDArray[np.uint64]:
        """A hash for each flow of what a model sees that reads so much of it; equal flows have equal hashes."""
        digests = np.empty(len(self), np.uint64)
        for place, row in enumerate(self.rows.tolist()):
            (first, start), (last, end) = self._ends[row : row + 2].tolist()
            middle = start + int(self._forward[row])
            parts = (
                self._lengths[first : min(last, first + payload_lengths)],
                self._content[start : min(middle, start + content_bytes)],
                self._content[middle : min(end, middle + content_bytes)],
            )
            digest = blake2b(digest_size=8)
            for part in parts:
                digest.update(len(part).to_bytes(4) + part.tobytes())
            digests[place] = int.from_bytes(digest.digest())
        return digests


@dataclass(frozen=True)
class StoredSamples:
    """n flows with their capture, label, originator and start. `labels` is -1 for a flow without one.

    `captures`, `labels` and `hosts` int32 [n] index the names; a capture's name is `corpus/capture`. `ids` uint64 [n]
    are `id_of` the capture and the uid.
    """

    flows: StoredFlows
    captures: NDArray[np.int32]
    labels: NDArray[np.int32]
    hosts: NDArray[np.int32]
    start_us: NDArray[np.int64]
    ids: Ids
    capture_names: list[str]
    label_names: list[str]
    host_names: list[str]

    def __len__(self) -> int:
        return len(self.captures)

    def take(self, index: NDArray[Any]) -> StoredSamples:
        """The samples at these places (indices, or a bool for each), sharing the storage."""
        per_flow = {name: getattr(self, name)[index] for name in ("captures", "labels", "hosts", "start_us", "ids")}
        return replace(self, flows=self.flows.take(index), **per_flow)

    def corpora(self) -> NDArray[np.int64]:
        """The number of each sample's corpus, int64 [n]."""
        names = _Names()
        corpus_of = np.array([names.number(name.partition("/")[0]) for name in self.capture_names], np.int64)
        return corpus_of[self.captures]

    def captures_of(self) -> list[str]:
        """The capture of every sample."""
        return [self.capture_names[index] for index in self.captures.tolist()]

    def labels_of(self) -> list[str | None]:
        """The label of every sample."""
        return [self.label_names[index] if index >= 0 else None for index in self.labels.tolist()]

    def labels_in(self, numbers: NDArray[np.int32]) -> set[str]:
        """The names of these labels."""
        return {self.label_names[index] for index in np.unique(numbers).tolist() if index >= 0}

    def with_label(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Which samples bear one of these labels, bool [n]."""
        wanted = set(names)
        return np.isin(self.labels, [index for index, name in enumerate(self.label_names) if name in wanted])

    def in_captures(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Which samples are of one of these captures, bool [n]."""
        wanted = set(names)
        return np.isin(self.captures, [index for index, name in enumerate(self.capture_names) if name in wanted])

    def held(self) -> dict[str, Counter[str | None]]:
        """For each capture how many flows of each label it holds, None for those without one."""
        held: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
        pairs, counts = np.unique(np.stack((self.captures, self.labels), axis=1), axis=0, return_counts=True)
        for (capture, label), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            held[self.capture_names[capture]][self.label_names[label] if label >= 0 else None] = count
        return dict(held)


class _Names:
    """Numbers names in the order in which they come."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self.index.setdefault(name, len(self.index))


def store(samples: Iterable[Sample], scratch: Path) -> StoredSamples:
    """Keep samples in unlinked files in the folder `scratch`; they are gone when the process ends, however it ends.

    Raises:
        OSError: the disk is full.
    """
    captures, labels, hosts, transports = _Names(), _Names(), _Names(), _Names()
    capture_of, label_of, host_of = array("i"), array("i"), array("i")
    start_us, ends, forward, ports, numbers = array("q"), array("q", (0, 0)), array("h"), array("H"), array("B")
    ids = array("Q")
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as lengths, tempfile.TemporaryFile(dir=scratch) as content:
        for sample in samples:
            flow = sample.flow
            capture = f"{sample.corpus}/{sample.capture}"
            capture_of.append(captures.number(capture))
            ids.append(id_of(capture, flow.uid))
            label_of.append(-1 if sample.label is None else labels.number(sample.label))
            host_of.append(hosts.number(flow.orig_h))
            start_us.append(flow.start_us)
            lengths.write(array("i", flow.payload_lengths).tobytes())
            content.write(flow.orig_bytes + flow.resp_bytes)
            forward.append(len(flow.orig_bytes))
            ports.extend((flow.orig_p, flow.resp_p))
            numbers.append(transports.number(transport_of(flow)))
            ends.append(ends[-2] + len(flow.payload_lengths))
            ends.append(ends[-2] + len(flow.orig_bytes) + len(flow.resp_bytes))
        flows = StoredFlows(
            _mapped(lengths, np.int32),
            _mapped(content, np.uint8),
            np.array(ends, np.int64).reshape(-1, 2),
            np.array(forward, np.int16),
            np.array(ports, np.uint16).reshape(-1, 2),
            np.array(numbers, np.uint8),
            list(transports.index),
            np.arange(len(forward), dtype=np.int64),
        )
    return StoredSamples(
        flows,
        np.array(capture_of, np.int32),
        np.array(label_of, np.int32),
        np.array(host_of, np.int32),
        np.array(start_us, np.int64),
        np.array(ids, np.uint64),
        list(captures.index),
        list(labels.index),
        list(hosts.index),
    )


def open_samples(features: Sequence[Path], scratch: Path) -> StoredSamples:
    """The samples of feature directories, kept in unlinked files in `scratch`."""
    return store(samples_of(features), scratch)


def _mapped(file: Any, kind: type[Any]) -> NDArray[Any]:
    file.flush()
    return np.memmap(file, kind, "r") if file.tell() else np.empty(0, kind)


def chunks(flows: Sequence[Flow], size: int) -> Iterator[list[Flow]]:
    """The flows in order, `size` in memory at a time."""
    for start in range(0, len(flows), size):
        yield [flows[index] for index in range(start, min(start + size, len(flows)))]
