"""Where labels come from: a table of flows, the folder of a capture, corrections. Finds a flow's label.

What a label of any of them becomes belongs to `label_map`, what a correction is of to `corrections`.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tapline.models.flow import PROTOCOLS, Flow
from tapline.training.data.corrections import Corrections
from tapline.training.data.label_map import LabelError as LabelError
from tapline.training.data.label_map import LabelMap
from tapline.training.data.origins import Origin
from tapline.training.data.tables import Table, TableError

COLUMNS = ("pcap", "l4", "client_ip", "client_port", "server_ip", "server_port")
_PROTOCOLS = {
    **dict.fromkeys(("icmp", "icmpv6", "icmp6", "ipv6-icmp", "1", "58"), "icmp"),
    **{"6": "tcp", "17": "udp", "igmp": "2", "gre": "47", "esp": "50", "ah": "51", "ospf": "89", "pim": "103"},
    **{"vrrp": "112", "pgm": "113", "sctp": "132"},
}
"""`Flow.proto` by other names and numbers of a transport."""


@dataclass(frozen=True)
class _Ends:
    """Transport and both endpoints in a fixed order, so that either direction finds them."""

    proto: str
    low: tuple[str, int]
    high: tuple[str, int]


def _ends(proto: str, a: tuple[str, int], b: tuple[str, int]) -> _Ends:
    if proto not in {"tcp", "udp"}:
        a, b = (a[0], 0), (b[0], 0)
    return _Ends(proto, *sorted((a, b)))


@dataclass
class LabelTable:
    """Labels by capture and endpoints, either direction. Endpoints with two labels in one capture have none.

    A capture is named by its file, or by its path where files of one name lie in several folders.
    """

    name: str = ""
    sha256: str = ""
    rows: int = 0
    left_out: int = 0
    malformed: int = 0
    ambiguous: int = 0
    _labels: dict[str, dict[_Ends, str | None]] = field(default_factory=dict)

    @property
    def captures(self) -> set[str]:
        """The captures that have a label."""
        return set(self._labels)

    @property
    def labels(self) -> set[str]:
        """Every label in it."""
        return {label for known in self._labels.values() for label in known.values() if label is not None}

    def add(self, capture: str, ends: _Ends, label: str) -> None:
        """Take one label in; a second, different one for the same endpoints makes both useless."""
        known = self._labels.setdefault(capture, {})
        if known.setdefault(ends, label) not in (label, None):
            known[ends] = None
            self.ambiguous += 1

    def take(self, capture: str, flow: Flow, label: str) -> None:
        """Take the label of a flow in, as `add`."""
        self.add(capture, _ends(flow.proto, (flow.orig_h, flow.orig_p), (flow.resp_h, flow.resp_p)), label)

    def cover(self, capture: str) -> None:
        """Say that a capture was looked at, whether or not anything in it gets a label."""
        self._labels.setdefault(capture, {})

    def name_of(self, capture: str) -> str | None:
        """What the table calls the capture of this path: the longest end of it that it names, None without any."""
        parts = PurePosixPath(capture).parts
        return next((end for end in ("/".join(parts[at:]) for at in range(len(parts))) if end in self._labels), None)

    def label_of(self, capture: str, flow: Flow) -> str | None:
        """The label of a flow of the capture of this path, None when it has none."""
        name = self.name_of(capture)
        if name is None:
            return None
        return self._labels[name].get(_ends(flow.proto, (flow.orig_h, flow.orig_p), (flow.resp_h, flow.resp_p)))


@dataclass(frozen=True)
class Labels:
    """Where the label of a flow comes from: a correction of it, else the table, else the first folder; and what
    the `map` makes of it.

    `from_folder`: the layout is `root/label/capture`. Without any of the three no flow has a label.
    """

    table: LabelTable | None = None
    from_folder: bool = False
    corrections: Corrections = field(default_factory=Corrections)
    map: LabelMap = field(default_factory=LabelMap)

    def label_of(self, origin: Origin, flow: Flow) -> str | None:
        """The label of a flow of an origin, None when it has none."""
        return self.map.of(self._given(origin, flow))

    def _given(self, origin: Origin, flow: Flow) -> str | None:
        if (correction := self.corrections.of(flow)) is not None:
            return correction.label
        label = None
        if self.table is not None:
            label = self.table.label_of(f"{origin.corpus}/{origin.capture}", flow)
        return label or (origin.folder if self.from_folder else None)

    def expected(self, origin: Origin) -> str | None:
        """What is known of the labels of an origin before it is read: its folder, or the table that names it."""
        if self.from_folder and origin.folder:
            return self.map.of(origin.folder)
        return self.table.name if self.table and self.table.name_of(f"{origin.corpus}/{origin.capture}") else None

    def fingerprint(self) -> str:
        """A hash of everything that decides labels."""
        digest = hashlib.sha256(f"{self.from_folder} {self.table.sha256 if self.table else ''}".encode())
        self.corrections.update(digest)
        digest.update(self.map.sha256.encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, str | int | bool]:
        """What a manifest says of them."""
        return {
            "table": self.table.name if self.table else "",
            "from_folder": self.from_folder,
            "corrections": len(self.corrections),
            **({"map": self.map.name, "map_sha256": self.map.sha256} if self.map.becomes else {}),
        }


def read_labels(path: Path, column: str = "protocol", confidence: Sequence[str] = ()) -> LabelTable:
    """Read a CSV table with `COLUMNS`, a column of labels, and `confidence` when prefixes of it are asked for.

    Raises:
        LabelError: a column is missing, or no row can be used. A row whose address or port is not one is counted.
    """
    wanted = tuple(confidence) or ("",)
    needed = [*COLUMNS, column, *(["confidence"] if confidence else [])]
    table = LabelTable(path.name)
    malformed = ""
    try:
        rows = Table(path, needed)
        table.sha256 = hashlib.sha256(rows.content + f"{column} {' '.join(confidence)}".encode()).hexdigest()
        for number, row in rows:
            table.rows += 1
            label = row[column.lower()]
            if not label or not row.get("confidence", "").startswith(wanted):
                table.left_out += 1
            elif (ends := _row_ends(row)) is None:
                table.malformed += 1
                malformed = malformed or f"; line {number}: expected an IP protocol, two addresses and two ports"
            else:
                table.add(row["pcap"], ends, label)
    except TableError as error:
        raise LabelError(str(error)) from None
    if not table.captures:
        raise LabelError(
            f"{path}: no row with a label of {column} can be used: expected one flow in each row{malformed}"
        )
    return table


def _row_ends(row: dict[str, str]) -> _Ends | None:
    l4 = _protocol(row["l4"])
    try:
        client, server = (
            (_address(row[f"{side}_ip"], l4), _port(row[f"{side}_port"])) for side in ("client", "server")
        )
    except ValueError:
        return None
    return _ends(l4, client, server) if l4 in PROTOCOLS else None


def _protocol(text: str) -> str:
    """A transport by name in any case, or by number, as `Flow.proto` has it."""
    name = text.lower().removesuffix(".0")
    return _PROTOCOLS.get(name, name)


def _port(text: str) -> int:
    """A port, 0 where the column is empty. Spreadsheets and data frames write whole numbers with decimals."""
    port = int(text.removesuffix(".0") or 0)
    if not 0 <= port <= 65_535:
        raise ValueError("no port")
    return port


def _address(text: str, l4: str) -> str:
    """An address as a flow has it; transports without ports may carry a port in the address column."""
    if l4 not in {"tcp", "udp"} and "." in text:
        text = text.partition(":")[0]
    address = ipaddress.ip_address(text.strip("[]"))
    return str(getattr(address, "ipv4_mapped", None) or address)
