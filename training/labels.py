"""Where labels come from: a table of flows, the folder of a capture, corrections by uid. Finds a flow's label."""

from __future__ import annotations

import csv
import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from models.flow import Flow
from training.origins import Origin

COLUMNS = ("pcap", "l4", "client_ip", "client_port", "server_ip", "server_port")
_WITHOUT_PORTS = {"icmp", "icmpv6"}
_PROTOCOL_NUMBERS = {"igmp": "2", "esp": "50", "ah": "51", "pim": "103", "vrrp": "112", "pgm": "113", "sctp": "132"}


class LabelError(ValueError):
    """The label table cannot be used; the message says which line and why."""


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
    """Labels by capture and endpoints, either direction. Endpoints with two labels in one capture have none."""

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

    def add(self, capture: str, ends: _Ends, label: str) -> None:
        """Take one label in; a second, different one for the same endpoints makes both useless."""
        known = self._labels.setdefault(capture, {})
        if known.setdefault(ends, label) not in (label, None):
            known[ends] = None
            self.ambiguous += 1

    def label_of(self, capture: str, flow: Flow) -> str | None:
        """The label of a flow of the capture with this file name, None when it has none."""
        ends = _ends(flow.proto, (flow.orig_h, flow.orig_p), (flow.resp_h, flow.resp_p))
        return self._labels.get(capture, {}).get(ends)


@dataclass(frozen=True)
class Labels:
    """Where the label of a flow comes from: a correction of its uid, else the table, else the first folder.

    `from_folder`: the layout is `root/label/capture`. Without any of the three no flow has a label.
    """

    table: LabelTable | None = None
    from_folder: bool = False
    corrections: Mapping[str, str] = field(default_factory=dict)

    def label_of(self, origin: Origin, flow: Flow) -> str | None:
        """The label of a flow of an origin, None when it has none."""
        if (label := self.corrections.get(flow.uid)) is not None:
            return label
        if self.table is not None:
            label = self.table.label_of(PurePosixPath(origin.capture).name, flow)
        return label or (origin.folder if self.from_folder else None)

    def expected(self, origin: Origin) -> str | None:
        """What is known of the labels of an origin before it is read: its folder, or the table that names it."""
        if self.from_folder and origin.folder:
            return origin.folder
        named = self.table is not None and PurePosixPath(origin.capture).name in self.table.captures
        return self.table.name if self.table and named else None

    def fingerprint(self) -> str:
        """A hash of everything that decides labels."""
        digest = hashlib.sha256(f"{self.from_folder} {self.table.sha256 if self.table else ''}".encode())
        for uid, label in sorted(self.corrections.items()):
            digest.update(f"\n{uid}\0{label}".encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, str | int | bool]:
        """What a manifest says of them."""
        return {
            "table": self.table.name if self.table else "",
            "from_folder": self.from_folder,
            "corrections": len(self.corrections),
        }


def read_corrections(path: Path) -> dict[str, str]:
    """Labels by uid from a CSV table with the columns `uid` and `label`; other columns are not read.

    Raises:
        LabelError: it is unreadable, a column is missing, a field is empty, or a uid has two labels.
    """
    corrections: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in ("uid", "label") if name not in (reader.fieldnames or [])]:
                raise LabelError(f"{path}: no column {missing[0]}; expected uid,label")
            for number, row in enumerate(reader, 2):
                uid, label = ((row[name] or "").strip() for name in ("uid", "label"))
                if not uid or not label:
                    raise LabelError(f"{path} line {number}: expected a uid and a label")
                if corrections.setdefault(uid, label) != label:
                    raise LabelError(f"{path} line {number}: a second label for the same uid")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path}: not a readable CSV table: {error}") from None
    if not corrections:
        raise LabelError(f"{path}: no correction in it")
    return corrections


def read_labels(path: Path, column: str = "protocol", confidence: str = "") -> LabelTable:
    """Read a CSV table with `COLUMNS`, a column of labels, and `confidence` when a prefix of it is asked for.

    Raises:
        LabelError: a column is missing, or no row can be used. A row whose address or port is not one is counted.
    """
    needed = [*COLUMNS, column, *(["confidence"] if confidence else [])]
    table = LabelTable(path.name)
    try:
        table.sha256 = hashlib.sha256(path.read_bytes() + f"{column} {confidence}".encode()).hexdigest()
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in needed if name not in (reader.fieldnames or [])]:
                raise LabelError(f"{path}: no column {missing[0]}; expected {', '.join(needed)}")
            for row in reader:
                table.rows += 1
                if not row[column] or not (row.get("confidence") or "").startswith(confidence):
                    table.left_out += 1
                    continue
                if (ends := _row_ends(row)) is None:
                    table.malformed += 1
                else:
                    table.add(row["pcap"], ends, row[column])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path}: not a readable CSV table: {error}") from None
    if not table.captures:
        raise LabelError(f"{path}: no row with a label of {column} can be used: expected one flow in each row")
    return table


def _row_ends(row: dict[str, str]) -> _Ends | None:
    l4 = row["l4"]
    proto = "icmp" if l4 in _WITHOUT_PORTS else _PROTOCOL_NUMBERS.get(l4, l4)
    try:
        client, server = (
            (_address(row[f"{side}_ip"], l4), int(row[f"{side}_port"] or 0)) for side in ("client", "server")
        )
    except (ValueError, TypeError):
        return None
    return _ends(proto, client, server)


def _address(text: str, l4: str) -> str:
    """An address in its shortest form; transports without ports may carry a port in the address column."""
    if l4 not in {"tcp", "udp"} and "." in text:
        text = text.partition(":")[0]
    return str(ipaddress.ip_address(text))
