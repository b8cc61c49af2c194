"""Which column of a table of labels is what, under the names that tools and people give them; and the times in it."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tapline.models.flow import MAX_COUNT, PROTOCOLS

LABEL = ("label", "class", "application_name", "ndpi_proto")
PREDICTION = ("prediction", "predicted", "label", "application_name", "ndpi_proto", "class")
UID = ("uid",)
COMMUNITY = ("community_id", "communityid")
CAPTURE = ("pcap", "capture", "input")
SUBJECT = ("subject", "mac", "host")
SUBJECT_SOURCE = ("source",)
TRANSPORT = ("l4", "proto", "ip_proto", "transport", "protocol")
CLIENT_IP = ("client_ip", "orig_h", "id_orig_h", "src_ip", "source_ip")
CLIENT_PORT = ("client_port", "orig_p", "id_orig_p", "src_port", "source_port")
SERVER_IP = ("server_ip", "resp_h", "id_resp_h", "dst_ip", "destination_ip")
SERVER_PORT = ("server_port", "resp_p", "id_resp_p", "dst_port", "destination_port")
TIME = (
    "start_us", "start_ms", "bidirectional_first_seen_ms", "first_seen_ms", "first_seen", "ts", "start", "start_time",
    "timestamp", "flow_start", "time",
)  # fmt: skip
ENDPOINTS = (TRANSPORT, CLIENT_IP, CLIENT_PORT, SERVER_IP, SERVER_PORT)

_PROTOCOLS = {
    **dict.fromkeys(("icmp", "icmpv6", "icmp6", "ipv6-icmp", "1", "58"), "icmp"),
    **{"6": "tcp", "17": "udp", "igmp": "2", "gre": "47", "esp": "50", "ah": "51", "ospf": "89", "pim": "103"},
    **{"vrrp": "112", "pgm": "113", "sctp": "132"},
}
"""`Flow.proto` by other names and numbers of a transport."""

_UNITS_US = {"us": 1, "ms": 1_000, "ns": 0.001}
"""Microseconds in what the end of a column's name says its numbers are."""
_DAY_FIRST = re.compile(
    r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?(?: ([AP])M)?", re.IGNORECASE
)
"""CICFlowMeter's times, the day first."""


class Ends(NamedTuple):
    """Transport and both endpoints in a fixed order, so that either direction finds them."""

    proto: str
    low: tuple[str, int]
    high: tuple[str, int]


def ends_of(proto: str, a: tuple[str, int], b: tuple[str, int]) -> Ends:
    """The endpoints of a flow; ports count where transports are TCP and UDP."""
    if proto not in {"tcp", "udp"}:
        a, b = (a[0], 0), (b[0], 0)
    return Ends(proto, *sorted((a, b)))


def plain(column: str) -> str:
    """A column's name as it is looked for: `Src IP`, `id.orig_h`, `#flow_id` are `src_ip`, `id_orig_h`, `flow_id`."""
    return re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")


def find_column(columns: Sequence[str], names: Sequence[str], taken: str = "") -> str:
    """The first column that bears one of these names, the earlier name first, "" without; not the one that is
    `taken`."""
    by_name = {plain(column): column for column in reversed(columns) if column != taken}
    return next((by_name[name] for name in names if name in by_name), "")


def row_ends(row: Mapping[str, str], columns: Sequence[str]) -> Ends:
    """The endpoints of a row by its five `columns`, in the order of `ENDPOINTS`.

    Raises:
        ValueError: one of them is none.
    """
    l4, client_ip, client_port, server_ip, server_port = (row[column] for column in columns)
    proto = _protocol(l4)
    if proto not in PROTOCOLS:
        raise ValueError("no transport")
    return ends_of(
        proto, (address_of(client_ip, proto), _port(client_port)), (address_of(server_ip, proto), _port(server_port))
    )


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


def address_of(text: str, l4: str = "") -> str:
    """An address as a flow has it; transports without ports may carry a port in the address column.

    Raises:
        ValueError: it is none.
    """
    if l4 not in {"tcp", "udp"} and "." in text:
        text = text.partition(":")[0]
    address = ipaddress.ip_address(text.strip("[]"))
    return str(getattr(address, "ipv4_mapped", None) or address)


def time_us(text: str, column: str) -> int:
    """A time in microseconds since 1970, from the text in a column.

    A number is of the unit that its column's name ends with (`_us`, `_ms`, `_ns`), else of the one that makes a time of
    it after 1973: seconds below 1e11, milliseconds below 1e14, microseconds below 1e17, nanoseconds. Text is ISO 8601,
    in UTC where it names no zone, or day/month/year as CICFlowMeter writes it.

    Raises:
        ValueError: it is no time.
    """
    try:
        number = float(text)
    except ValueError:
        return _from_words(text)
    unit = _UNITS_US.get(plain(column).rpartition("_")[2])
    if unit is None:
        unit = next((unit for below, unit in ((1e11, 1e6), (1e14, 1e3), (1e17, 1)) if number < below), 0.001)
    if not math.isfinite(number) or not 0 <= number * unit <= MAX_COUNT:
        raise ValueError("no time")
    return _scaled(text, number, unit)


def _scaled(text: str, number: float, unit: float) -> int:
    """Exactly where the number is whole: of nanoseconds a double has no room for the last digits."""
    return int(text) * int(unit) if unit >= 1 and text.isdigit() else round(number * unit)


def _from_words(text: str) -> int:
    if found := _DAY_FIRST.fullmatch(text):
        day, month, year, hour, minute = (int(part) for part in found.groups()[:5])
        seconds = float(found[6] or 0)
        if found[7]:
            hour = hour % 12 + 12 * (found[7].upper() == "P")
        moment = datetime(year, month, day, hour, minute, tzinfo=UTC)
        return round((moment.timestamp() + seconds) * 1e6)
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
