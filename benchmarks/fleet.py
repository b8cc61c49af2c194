"""What fleets of 1, 10 and 100 sensors need, computed from measured costs: the tables of `docs/fleet.md`.

    python benchmarks/fleet.py [--write]

Change a cost here when it was measured again, with where it comes from. `--write` puts both tables between their marks;
a test holds the page against this script.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "fleet.md"
COSTS, SIZES, END = "<!-- costs: by fleet.py -->", "<!-- sizes: by fleet.py -->", "<!-- end of the table -->"
FLEETS = (1, 10, 100)
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Cost:
    """A number that the sizes are computed from, and its source."""

    value: float
    what: str
    source: str


FLOWS = Cost(2000, "flows with payload a second that one sensor sees", "assumed")
PUBLISHED = Cost(74_632 / 59_888, "times that a flow is published, early and final together", "`accounting.py`")
BUS_BYTES = Cost(549, "bytes on the bus for each", "`sensor.py`, plugin")
SERVICE_US = Cost(260, "us of CPU for each in `tapline serve`, all threads, history in PostgreSQL", "`service_cost.py`")
LOOP_US = Cost(102, "us of these in the event loop", "`service_cost.py`")
DATABASE_US = Cost(43, "us of CPU for each in PostgreSQL", "`service_cost.py`")
OPERATIONS = Cost(5.44e6, "multiplications and additions of the flow model for each", "as `gpu.py` counts")
SCORING_US = Cost(7.0e6 / 10_000 / 10, "us of CPU for a flow in windows of ten, two trace models", "`memory.py`")
IDLE_MB = Cost(165, "MB of a service with 6,000 flows in open windows", "`service_cost.py`")
OPEN_BYTES = Cost(1092, "bytes of memory for a flow in an open window, two trace models", "`memory.py`")
WINDOW_SECONDS = Cost(660, "seconds that a window is open, lateness included", "checkpoints, `trace_lateness_seconds`")
ROW_BYTES = Cost(543, "bytes of a row in PostgreSQL, indexes included", "`history.py`")
SERIES = Cost(212, "Prometheus series of a service with one sensor and few labels", "`service_cost.py`")
LABEL_SERIES = Cost(2 * (78 + 32 + 13), "more of them once every label was seen, early and final", "checkpoints")
LOOP_SHARE = Cost(0.5, "of its time that an event loop is to be busy at most", "chosen: bursts")
CORE_SHARE = Cost(0.6, "of their time that cores are to be busy at most", "chosen: bursts")
HOST_CORES = Cost(16, "cores of a host", "assumed")
KEPT_DAYS = Cost(7, "days that verdicts are kept", "assumed: `history_days`")
ALL_COSTS = [
    FLOWS, PUBLISHED, BUS_BYTES, SERVICE_US, LOOP_US, DATABASE_US, OPERATIONS, SCORING_US, IDLE_MB, OPEN_BYTES,
    WINDOW_SECONDS, ROW_BYTES, SERIES, LABEL_SERIES, LOOP_SHARE, CORE_SHARE, HOST_CORES, KEPT_DAYS,
]  # fmt: skip
NAMES = {id(cost): name for name, cost in list(globals().items()) if isinstance(cost, Cost)}


@dataclass(frozen=True)
class Size:
    """What a number of sensors needs. Memory in GB, rates in Mbit/s, disk in TB."""

    sensors: int

    @property
    def flows(self) -> float:
        """Flows a second."""
        return self.sensors * FLOWS.value

    @property
    def publications(self) -> float:
        """Publications a second."""
        return self.flows * PUBLISHED.value

    @property
    def services(self) -> int:
        """Processes: as many for each sensor, by shards, as keep their event loops below their share."""
        loops = FLOWS.value * PUBLISHED.value * LOOP_US.value / 1e6
        return self.sensors * math.ceil(loops / LOOP_SHARE.value)

    @property
    def cores(self) -> float:
        """Cores that are busy all the time, of all services."""
        return (self.publications * SERVICE_US.value + self.flows * SCORING_US.value) / 1e6

    @property
    def hosts(self) -> int:
        """Hosts for these, busy at most for their share."""
        return math.ceil(self.cores / CORE_SHARE.value / HOST_CORES.value)

    @property
    def operations(self) -> float:
        """10^12 operations a second of the flow model: what GPUs would take over of the cores."""
        return self.publications * OPERATIONS.value / 1e12

    @property
    def open_flows(self) -> float:
        """Flows in open windows of one trace model."""
        return self.flows * WINDOW_SECONDS.value

    @property
    def memory(self) -> float:
        """GB of all services."""
        return (self.services * IDLE_MB.value * 1e6 + self.open_flows * OPEN_BYTES.value) / 1e9

    @property
    def bus(self) -> float:
        """Mbit/s of all buses together."""
        return 8 * self.publications * BUS_BYTES.value / 1e6

    @property
    def rows(self) -> float:
        """Millions of rows a day."""
        return self.flows * DAY_SECONDS / 1e6

    @property
    def disk(self) -> float:
        """TB for the days that are kept."""
        return self.rows * 1e6 * ROW_BYTES.value * KEPT_DAYS.value / 1e12

    @property
    def database_cores(self) -> float:
        """Cores that PostgreSQL keeps busy."""
        return self.publications * DATABASE_US.value / 1e6

    @property
    def series(self) -> float:
        """Prometheus series."""
        return self.services * (SERIES.value + LABEL_SERIES.value)


ROWS = {
    "flows/s; publications/s": (
        lambda size: f"{size.flows:,.0f}; {size.publications:,.0f}", "sensors x FLOWS; x PUBLISHED"),
    "services": (
        lambda size: f"{size.services:,}", "for each sensor FLOWS x PUBLISHED x LOOP_US / 10^6 / LOOP_SHARE, up"),
    "cores busy in services": (
        lambda size: f"{size.cores:,.1f}", "(publications/s x SERVICE_US + flows/s x SCORING_US) / 10^6"),
    "CPU hosts": (lambda size: f"{size.hosts:,}", "cores / CORE_SHARE / HOST_CORES, up"),
    "flow model, 10^12 operations/s": (lambda size: f"{size.operations:,.2f}", "publications/s x OPERATIONS / 10^12"),
    "`trace_open_flows` of each service": (
        lambda size: f"{2 * size.open_flows / size.services:,.0f}", "2 models x flows/s x WINDOW_SECONDS / services"),
    "memory of services, GB": (
        lambda size: f"{size.memory:,.1f}",
        "(services x IDLE_MB x 10^6 + flows/s x WINDOW_SECONDS x OPEN_BYTES) / 10^9"),
    "buses, Mbit/s": (lambda size: f"{size.bus:,.1f}", "8 x publications/s x BUS_BYTES / 10^6"),
    "PostgreSQL, million rows/day": (lambda size: f"{size.rows:,.0f}", "flows/s x 86,400 / 10^6"),
    "PostgreSQL, TB for KEPT_DAYS": (lambda size: f"{size.disk:,.2f}", "rows x ROW_BYTES x KEPT_DAYS / 10^12"),
    "cores busy in PostgreSQL": (lambda size: f"{size.database_cores:,.2f}", "publications/s x DATABASE_US / 10^6"),
    "Prometheus series": (lambda size: f"{size.series:,.0f}", "services x (SERIES + LABEL_SERIES)"),
}  # fmt: skip


def number(value: float) -> str:
    """A value as people read it."""
    if value >= 1e6:
        return f"{value / 1e6:,.1f} million"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def costs_table() -> str:
    """What the sizes are computed from."""
    rows = [f"| {NAMES[id(cost)]} | {number(cost.value)} | {cost.what} | {cost.source} |" for cost in ALL_COSTS]
    return "\n".join(["| name | value | what | source |", "|---|---|---|---|", *rows])


def sizes_table() -> str:
    """What fleets need."""
    sizes = [Size(sensors) for sensors in FLEETS]
    names = [f"{size.sensors} sensors" if size.sensors > 1 else "1 sensor" for size in sizes]
    head = f"| | {' | '.join(names)} | how |"
    rows = [f"| {what} | {' | '.join(map(show, sizes))} | {how} |" for what, (show, how) in ROWS.items()]
    return "\n".join([head, "|---" * (len(sizes) + 2) + "|", *rows])


def written(text: str) -> str:
    """A page with both tables in their places.

    Raises:
        ValueError: it lacks a mark.
    """
    for begin, table in ((COSTS, costs_table()), (SIZES, sizes_table())):
        before, mark, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"expected {begin} and {END}")
        text = f"{before}{begin}\n{table}\n{END}{after}"
    return text


def main() -> None:
    """Print both tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="into docs/fleet.md")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    print(f"{costs_table()}\n\n{sizes_table()}")


if __name__ == "__main__":
    main()
