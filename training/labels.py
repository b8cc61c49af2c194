"""The label table: which flow of which capture is what. Reads the table and finds the label of a flow, nothing more."""

from __future__ import annotations

import csv
import ipaddress
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from models.flow import Flow

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

    rows: int = 0
    left_out: int = 0
    malformed: int = 0
    ambiguous: int = 0
    _labels: dict[str, dict[_Ends, str | None]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def captures(self) -> set[str]:
        """The captures that have a label."""
        return set(self._labels)

    def add(self, capture: str, ends: _Ends, label: str) -> None:
        """Take one label in; a second, different one for the same endpoints makes both useless."""
        known = self._labels[capture]
        if known.setdefault(ends, label) not in (label, None):
            known[ends] = None
            self.ambiguous += 1

    def label_of(self, capture: str, flow: Flow) -> str | None:
        """The label of a flow of the capture with this file name, None when it has none."""
        ends = _ends(flow.proto, (flow.orig_h, flow.orig_p), (flow.resp_h, flow.resp_p))
        return self._labels.get(capture, {}).get(ends)


def read_labels(path: Path, column: str = "protocol", confidence: str = "") -> LabelTable:
    """Read a CSV table with `COLUMNS`, a column of labels, and `confidence` when a prefix of it is asked for.

    Raises:
        LabelError: a column is missing, or no row can be used. A row whose address or port is not one is counted.
    """
    needed = [*COLUMNS, column, *(["confidence"] if confidence else [])]
    table = LabelTable()
    try:
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
