"""How far the built-in capture reader agrees with Zeek's logs: python benchmarks/agreement.py CAPTURES LOGS [--list].

CAPTURES is a folder of captures; LOGS has, for each of them, a folder of the same name (with or without its ending)
that holds conn.log, ps.log and raw.log (plain or gzip) as Zeek with the published MM4flow scripts writes them,
checksums ignored. Flows are matched by endpoints, protocol and start within 1 ms. Each disagreement gets a cause by
rule (see `causes`); the published scripts have known faults, and what differs for them alone is counted apart. So is
what Zeek does not read: link headers, lengths and nestings that the reader counts as beyond Zeek.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tapline.models.flow import MAX_PAYLOAD_LENGTHS, Flow
from tapline.service.sources.capture import CaptureError, CaptureReader, ReadOptions

START_TOLERANCE_US = 1_000
NOT_READ = "Zeek does not read"
EXCUSED = re.compile(f"published script:|{NOT_READ}:")
ENDPOINTS = ("id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p")


@dataclass
class Logged:
    """One connection of Zeek's logs; `ps` and `raw` are None where the log has no row."""

    conn: dict[str, str]
    ps: list[int] | None = None
    up: int = 0
    down: int = 0
    raw: tuple[str, str] | None = None

    @property
    def start_us(self) -> int:
        """The start in microseconds since the epoch."""
        seconds, _, fraction = self.conn["ts"].partition(".")
        return int(seconds) * 1_000_000 + int(fraction.ljust(6, "0"))

    @property
    def key(self) -> tuple[str, ...]:
        """Endpoints and protocol, as in `Flow`."""
        proto = self.conn["proto"]
        if proto == "unknown_transport":
            proto = self.conn.get("ip_proto", proto)
        return (*(self.conn[name] for name in ENDPOINTS), proto)


@dataclass
class Tally:
    """Counts over captures: `connections` of conn.log, `compared` of them with payload, `identical` of those."""

    captures: int = 0
    connections: int = 0
    found: int = 0
    extra: int = 0
    not_read: int = 0
    compared: int = 0
    identical: int = 0
    excused: int = 0
    same_counts: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Adds another tally to this one."""
        for name in self.__dataclass_fields__.keys() - {"causes"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.causes += other.causes


def log_rows(folder: Path, name: str) -> Iterator[dict[str, str]]:
    for path, opener in ((folder / f"{name}.log", open), (folder / f"{name}.log.gz", gzip.open)):
        if path.exists():
            with opener(path, "rt", errors="replace") as lines:  # type: ignore[operator]
                fields: list[str] = []
                for line in lines:
                    columns = line.rstrip("\n").split("\t")
                    if columns[0] == "#fields":
                        fields = columns[1:]
                    elif not line.startswith("#"):
                        yield dict(zip(fields, columns, strict=True))


def read_logs(folder: Path) -> list[Logged]:
    logged = {row["uid"]: Logged(row) for row in log_rows(folder, "conn")}
    for row in log_rows(folder, "ps"):
        if row["uid"] in logged:
            runs = [run.split(":") for run in row["ps"].split(",")]
            flow = logged[row["uid"]]
            flow.ps = [int(value) for value, count in runs for _ in range(int(count))]
            flow.up, flow.down = int(row["up"]), int(row["down"])
    for row in log_rows(folder, "raw"):
        if row["uid"] in logged:
            fwd, bwd = ("" if row[name] == "(empty)" else row[name] for name in ("fwd_raw", "bwd_raw"))
            logged[row["uid"]].raw = (fwd, bwd)
    return list(logged.values())


def read_flows(path: Path) -> tuple[list[Flow], str]:
    """The flows of a capture, and what of it Zeek does not read, "" where there is nothing."""
    try:
        reader = CaptureReader(path, ReadOptions(heads="none"))
        return list(reader), ", ".join(sorted(reader.beyond_zeek))
    except CaptureError as error:
        print(f"  {path.name}: {error}", file=sys.stderr)
        return [], ""


def pair(logged: list[Logged], flows: list[Flow]) -> tuple[list[tuple[Logged, Flow | None]], list[Flow]]:
    by_key: dict[tuple[str, ...], list[Flow]] = defaultdict(list)
    for flow in flows:
        by_key[(flow.orig_h, str(flow.orig_p), flow.resp_h, str(flow.resp_p), flow.proto)].append(flow)
    pairs: list[tuple[Logged, Flow | None]] = []
    for connection in logged:
        near = [f for f in by_key[connection.key] if abs(f.start_us - connection.start_us) <= START_TOLERANCE_US]
        match = min(
            near, key=lambda f: (same_lengths(connection, f), abs(f.start_us - connection.start_us)), default=None
        )
        if match is not None:
            by_key[connection.key].remove(match)
        pairs.append((connection, match))
    return pairs, [flow for left in by_key.values() for flow in left]


def same_lengths(connection: Logged, flow: Flow) -> bool:
    """False (which sorts first) where the lengths agree."""
    return (connection.ps or [])[:MAX_PAYLOAD_LENGTHS] != flow.payload_lengths


def same_counts(conn: dict[str, str], flow: Flow) -> bool:
    """Whether packets and IP bytes each way, duration (to 1 ms) and state are those of conn.log."""
    counts = [conn[name] for name in ("orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes")]
    mine = [flow.orig_pkts, flow.resp_pkts, flow.orig_ip_bytes, flow.resp_ip_bytes]
    duration_us = 0.0 if conn["duration"] == "-" else max(0.0, float(conn["duration"])) * 1e6
    return (
        list(map(str, mine)) == counts
        and abs(duration_us - flow.duration_us) <= START_TOLERANCE_US
        and conn["conn_state"] == flow.conn_state
    )


def causes(connection: Logged, flow: Flow | None, orphans: list[Flow], not_read: str) -> list[str]:
    """What differs between a connection and its flow, each with the first rule that explains it; in a capture that
    holds what Zeek does not read, that is the last rule."""
    if flow is None:
        return [f"missing: {missing_cause(connection, orphans)}"]
    found = []
    lengths = (connection.ps or [])[:MAX_PAYLOAD_LENGTHS]
    if lengths != flow.payload_lengths or (connection.up, connection.down) != (flow.up, flow.down):
        found.append(f"lengths: {lengths_cause(connection, flow)}")
    if connection.raw is not None and connection.raw != (flow.orig_bytes.hex(), flow.resp_bytes.hex()):
        found.append(f"content: {content_cause(connection, flow)}")
    return [cause.replace("unexplained", f"{NOT_READ}: {not_read}") if not_read else cause for cause in found]


def missing_cause(connection: Logged, orphans: list[Flow]) -> str:
    orig_h, orig_p, resp_h, resp_p, proto = connection.key
    same_protocol = [flow for flow in orphans if flow.proto == proto]
    for flow in same_protocol:
        ends = (flow.orig_h, str(flow.orig_p), flow.resp_h, str(flow.resp_p))
        is_near = abs(flow.start_us - connection.start_us) <= START_TOLERANCE_US
        if ends == (resp_h, resp_p, orig_h, orig_p) and is_near:
            return "the other direction"
        if ends == (orig_h, orig_p, resp_h, resp_p):
            return "cut in time elsewhere"
    return "unexplained"


def lengths_cause(connection: Logged, flow: Flow) -> str:
    """Rules in order; each but the last names a fault of the published script that the reader does not share."""
    logged, mine = (connection.ps or [])[:MAX_PAYLOAD_LENGTHS], flow.payload_lengths
    if flow.orig_h == flow.resp_h and list(map(abs, logged)) == list(map(abs, mine)):
        return "published script: one direction between two ports of one host"
    surplus = {abs(a) - abs(b) for a, b in zip(logged, mine, strict=False)} - {0}
    same_packets = len(logged) == len(mine) and all(a * b > 0 for a, b in zip(logged, mine, strict=True))
    if ":" in flow.orig_h and len(logged) >= len(mine) and has_extension_headers(connection, flow):
        return "published script: IPv6 extension headers counted as payload"
    if same_packets and surplus and all(8 <= n <= 60 for n in surplus):
        return "published script: header counted as payload (packet cut by the snap length, or ICMP under 28 bytes)"
    if not mine and logged and flow.proto == "icmp" and all(8 <= abs(n) < 28 for n in logged):
        return "published script: header counted as payload (packet cut by the snap length, or ICMP under 28 bytes)"
    if connection.up + connection.down < flow.up + flow.down and is_subsequence((connection.ps or [])[:200], mine[:]):
        return "published script: packets with IP length 0 (offload) left out"
    if len(logged) > len(mine) and is_subsequence(mine, logged) and flow.proto == "tcp":
        return "published script: TCP packets with an impossible header length counted"
    return "unexplained"


def has_extension_headers(connection: Logged, flow: Flow) -> bool:
    """IPv6 headers beyond the fixed one are multiples of four bytes, also of packets without payload."""
    logged, mine = sum(map(abs, connection.ps or [])), sum(map(abs, flow.payload_lengths))
    return logged > mine and (logged - mine) % 4 == 0


def is_subsequence(short: list[int], long: list[int]) -> bool:
    rest = iter(long)
    return all(item in rest for item in short)


def content_cause(connection: Logged, flow: Flow) -> str:
    assert connection.raw is not None
    mine = flow.orig_bytes.hex(), flow.resp_bytes.hex()
    history = connection.conn["history"]
    if flow.proto == "udp" and "^" in history[1:]:
        return "published script: first answer logged before the flow was turned"
    if flow.proto == "tcp" and all(theirs.startswith(ours) for theirs, ours in zip(connection.raw, mine, strict=True)):
        return "published script: content joined across a gap"
    return "unexplained"


def compare(capture: Path, logs: Path, listing: bool) -> Tally:
    tally = Tally(captures=1)
    flows, not_read = read_flows(capture)
    pairs, orphans = pair(read_logs(logs), flows)
    tally.connections = len(pairs)
    tally.extra = 0 if not_read else len(orphans)
    tally.not_read = len(orphans) - tally.extra
    for connection, flow in pairs:
        tally.found += flow is not None
        tally.same_counts += flow is not None and same_counts(connection.conn, flow)
        differences = causes(connection, flow, orphans, not_read)
        if connection.ps is not None:
            tally.compared += 1
            tally.identical += not differences
            tally.excused += bool(differences) and all(EXCUSED.search(cause) for cause in differences)
        for cause in differences:
            tally.causes[cause] += 1
            if listing:
                print(f"  {capture}: {' '.join(connection.key)} {connection.conn['ts']}: {cause}")
    for flow in orphans:
        cause = f"{NOT_READ}: {not_read}" if not_read else "extra flow"
        tally.causes[cause] += 1
        if listing:
            ends = f"{flow.orig_h} {flow.orig_p} {flow.resp_h} {flow.resp_p} {flow.proto}"
            print(f"  {capture}: {ends} {flow.start_us / 1e6:.6f}: {cause}")
    return tally


def logs_of(capture: Path, captures: Path, logs: Path) -> Path:
    relative = capture.relative_to(captures)
    exact = logs / relative
    return exact if exact.is_dir() or relative.suffix == "" else logs / relative.with_suffix("")


def report(tally: Tally) -> None:
    print(f"captures {tally.captures}, connections in conn.log {tally.connections}")
    share = 100 * tally.found / max(1, tally.connections)
    print(f"  found with the same endpoints, direction, protocol and start: {tally.found} ({share:.2f} %)")
    print(f"  flows that Zeek does not have: {tally.extra}")
    print(f"  flows of captures that hold what Zeek does not read: {tally.not_read}")
    share = 100 * tally.identical / max(1, tally.compared)
    print(f"  with payload {tally.compared}, identical lengths and content: {tally.identical} ({share:.2f} %)")
    share = 100 * (tally.identical + tally.excused) / max(1, tally.compared)
    print(
        f"  identical, or different only by faults of the published scripts or what Zeek does not read: {share:.2f} %"
    )
    share = 100 * tally.same_counts / max(1, tally.connections)
    print(f"  same packet and byte counts, duration and state as conn.log: {tally.same_counts} ({share:.2f} %)")
    for cause, count in tally.causes.most_common():
        print(f"  {count:6d}  {cause}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("captures", type=Path)
    parser.add_argument("logs", type=Path)
    parser.add_argument("--list", action="store_true", help="name every disagreement")
    arguments = parser.parse_args()
    total = Tally()
    for capture in sorted(path for path in arguments.captures.rglob("*") if path.is_file()):
        if capture.name.endswith((".gz", ".md", ".csv")):
            continue
        total.add(compare(capture, logs_of(capture, arguments.captures, arguments.logs), arguments.list))
    report(total)


if __name__ == "__main__":
    main()
