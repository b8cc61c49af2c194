"""Flows, verdicts and traces as literals for the tests of results."""

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.traces.trace_verdict import TopFlow, TraceVerdict

START_US = 1_700_000_000_000_000


def make_flow(number=0, *, orig_h="10.0.0.5", resp_h="10.0.0.9", resp_p=443, proto="tcp", payload=True, **fields):
    values = {"up": 1, "down": 1, "payload_lengths": [10, -20], "orig_bytes": b"GET", "resp_bytes": b"HTTP"}
    return Flow(
        f"C{number}", START_US + number * 1_000_000, 1000, orig_h, 40_000, resp_h, resp_p, proto,
        **{**(values if payload else {}), "orig_ip_bytes": 100, "resp_ip_bytes": 200, **fields},
    )  # fmt: skip


def make_verdict(label="TLS", confidence=0.99, *, unknown=False, **fields):
    return Verdict("unknown" if unknown else label, label, confidence, unknown, [], "flow-protocols", "2", **fields)


def make_trace(subject="10.0.0.5", label="Mirai", **fields):
    top = TopFlow("C0", "1:x", START_US, 1000, "tcp", "10.0.0.5", 40_000, "10.0.0.9", 443, 300, "TLS", 0.9, "a.example")
    verdict = make_verdict(label, unknown=fields.pop("unknown", False))
    return TraceVerdict(
        "a.pcap", "originator", subject, START_US, START_US + 600_000_000, 3, 0, verdict, [top], **fields
    )
