"""Flows as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from tapline.service.dashboard.board import address, flow_address
from tapline.service.dashboard.frame import Cell, PlainTable, joined, link, tag
from tapline.service.dashboard.words import moment, percent, size
from tapline.service.history.past import PastFlow

COLUMNS = ("UTC", "label", "confidence", "client", "server", "name", "packets", "bytes")
NUMBERS = ("confidence", "packets", "bytes")


def flow_table(empty: str) -> PlainTable:
    """A table for `rows`."""
    return PlainTable(COLUMNS, NUMBERS, empty)


def rows(flows: Iterable[PastFlow], job: str | None = None) -> list[list[Cell]]:
    """A row for each flow; of a job, or of the live history."""
    return [_row(flow, job) for flow in flows]


def _row(flow: PastFlow, job: str | None) -> list[Cell]:
    at = flow.start_us if job else flow.seen_us
    return [
        link(moment(at, day=False), flow_address(flow, job)),
        label_cell(flow),
        percent(flow.verdict.confidence),
        host_cell(flow.orig_h, flow.orig_p, job),
        joined([host_cell(flow.resp_h, flow.resp_p, job), flow.proto]),
        flow.server_name,
        flow.orig_pkts + flow.resp_pkts,
        size(flow.orig_ip_bytes + flow.resp_ip_bytes),
    ]


def label_cell(flow: PastFlow) -> Markup:
    """The label, and what is odd about it."""
    verdict = flow.verdict
    words: list[Cell] = [tag(verdict.label) if verdict.unknown else verdict.label]
    if verdict.unexpected_port is True:
        words.append(tag("unexpected port", "alarm"))
    if not verdict.final:
        words.append(tag("early"))
    return joined(words)


def host_cell(host: str, port: int | None, job: str | None) -> Markup:
    """A host, to its page."""
    text = host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return link(text, address("/host", {"host": host, "job": job}))
