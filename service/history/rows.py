"""Records to rows of the tables, and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tapline.models import packed_packets
from tapline.models.flow import Flow
from tapline.models.server_name import server_name
from tapline.models.verdict import Alternative, Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.community_id import community_id
from tapline.service.history.addresses import address_key, address_text
from tapline.service.history.past import FlowRecord, PastAlert, PastFlow, PastTrace, TraceRecord
from tapline.service.traces.trace_verdict import TopFlow, TraceVerdict

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

Row = dict[str, Any]

_SHORT, _LONG = b"h", b"i"
_ALTERNATIVES = msgspec.json.Decoder(list[tuple[str, float]])
_TOP_FLOWS = msgspec.json.Decoder(list[TopFlow])
_JSON = msgspec.json.Encoder()


def text(foreign: str) -> str:
    """Text that every database takes: without NUL and lone surrogates, which are replaced."""
    if foreign.isprintable():
        return foreign
    return foreign.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def pack_lengths(lengths: Sequence[int]) -> bytes:
    """Signed lengths in little-endian, of two bytes each where all fit."""
    if not lengths:
        return b""
    values = np.frombuffer(packed_packets.pack_lengths(lengths).packed, "<i4")
    if values.min() >= -0x8000 and values.max() < 0x8000:
        return _SHORT + values.astype("<i2").tobytes()
    return _LONG + values.tobytes()


def unpack_lengths(packed: bytes) -> list[int]:
    """The lengths of `pack_lengths`."""
    if not packed:
        return []
    kind = packed[:1].decode()
    count = (len(packed) - 1) // struct.calcsize(kind)
    return list(struct.unpack_from(f"<{count}{kind}", packed, 1))


def _verdict_row(source: str, verdict: Verdict) -> Row:
    return {
        "source": text(source),
        "label": verdict.label,
        "nearest": verdict.nearest,
        "confidence": verdict.confidence,
        "unknown": verdict.unknown,
        "alternatives": _JSON.encode([(each.label, each.confidence) for each in verdict.alternatives]).decode(),
        "model": verdict.model,
        "version": verdict.version,
        "final": verdict.final,
    }


def _verdict(row: RowMapping, **more: Any) -> Verdict:
    return Verdict(
        label=row["label"],
        nearest=row["nearest"],
        confidence=row["confidence"],
        unknown=row["unknown"],
        alternatives=[Alternative(*each) for each in _ALTERNATIVES.decode(row["alternatives"])],
        model=row["model"],
        version=row["version"],
        final=row["final"],
        **more,
    )


def flow_row(seen_us: int, source: str, flow: Flow, verdict: Verdict, *, content: bool) -> Row:
    """The row of a flow; with `content` it has the first content bytes, too."""
    has_ports = verdict.port_label is not msgspec.UNSET
    return {
        "seen_us": seen_us,
        **_verdict_row(source, verdict),
        "port_label": (verdict.port_label or "") if has_ports else None,
        "unexpected_port": bool(verdict.unexpected_port) if has_ports else None,
        "sensor": text(flow.sensor),
        "uid": text(flow.uid),
        "start_us": flow.start_us,
        "duration_us": flow.duration_us,
        "proto": flow.proto,
        "orig_key": address_key(flow.orig_h),
        "orig_p": flow.orig_p,
        "resp_key": address_key(flow.resp_h),
        "resp_p": flow.resp_p,
        "up": flow.up,
        "down": flow.down,
        "orig_pkts": flow.orig_pkts,
        "resp_pkts": flow.resp_pkts,
        "orig_ip_bytes": flow.orig_ip_bytes,
        "resp_ip_bytes": flow.resp_ip_bytes,
        "ip_bytes": flow.orig_ip_bytes + flow.resp_ip_bytes,
        "service": text(flow.service),
        "conn_state": text(flow.conn_state),
        "server_name": text(server_name(flow)),
        "payload_lengths": pack_lengths(flow.payload_lengths),
        "orig_bytes": flow.orig_bytes if content else b"",
        "resp_bytes": flow.resp_bytes if content else b"",
    }


_SAME_OF_FLOWS = [
    "number", "seen_us", "source", "sensor", "uid", "start_us", "duration_us", "proto", "orig_p", "resp_p", "up",
    "down", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "service", "conn_state", "server_name",
]  # fmt: skip


def past_flow(row: RowMapping) -> PastFlow:
    """The record of a row."""
    ports = {}
    if row["port_label"] is not None:
        ports = {"port_label": row["port_label"] or None, "unexpected_port": row["unexpected_port"]}
    flow = PastFlow(
        **{name: row[name] for name in _SAME_OF_FLOWS},
        community_id="",
        orig_h=address_text(row["orig_key"]),
        resp_h=address_text(row["resp_key"]),
        payload_lengths=unpack_lengths(bytes(row["payload_lengths"])),
        orig_bytes=bytes(row["orig_bytes"]).hex(),
        resp_bytes=bytes(row["resp_bytes"]).hex(),
        verdict=_verdict(row, **ports),
    )
    return msgspec.structs.replace(flow, community_id=community_id(flow))


_SAME_IN_RECORDS = [
    "sensor", "uid", "start_us", "duration_us", "proto", "orig_h", "orig_p", "resp_h", "resp_p", "up", "down",
    "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "service", "conn_state", "payload_lengths",
]  # fmt: skip


def flow_record(seen_us: int, source: str, flow: Flow, verdict: Verdict) -> FlowRecord:
    """The record of a flow that need not be in the history, without content."""
    return FlowRecord(
        **{name: getattr(flow, name) for name in _SAME_IN_RECORDS},
        seen_us=seen_us,
        source=source,
        community_id=community_id(flow),
        server_name=server_name(flow),
        orig_bytes="",
        resp_bytes="",
        verdict=verdict,
    )


def trace_record(seen_us: int, trace: TraceVerdict) -> TraceRecord:
    """The record of a trace verdict that need not be in the history."""
    return TraceRecord(seen_us=seen_us, **{name: getattr(trace, name) for name in TraceVerdict.__struct_fields__})


def trace_row(seen_us: int, trace: TraceVerdict) -> Row:
    """The row of a trace."""
    subject = text(trace.subject).lower()
    return {
        "seen_us": seen_us,
        **_verdict_row(trace.source, trace.verdict),
        "subject_kind": trace.subject_kind,
        "subject": subject,
        "subject_key": subject_key(subject),
        "start_us": trace.start_us,
        "end_us": trace.end_us,
        "flows": trace.flows,
        "cut": trace.cut,
        "suspicion": trace.suspicion,
        "suspicious": trace.suspicious,
        "top_flows": text(_JSON.encode(trace.top_flows).decode()),
    }


def alert_row(seen_us: int, alert: Alert) -> Row:
    """The row of an alert that nobody has seen to."""
    return {
        "seen_us": seen_us,
        "id": text(alert.id),
        "rule": text(alert.rule),
        "severity": alert.severity,
        "kind": alert.kind,
        "model": alert.model,
        "label": alert.label,
        "uid": text(alert.uid),
        "orig_key": subject_key(alert.orig_h),
        "resp_key": subject_key(alert.resp_h),
        "subject_key": subject_key(alert.subject),
        "acknowledged_us": None,
        "acknowledged_by": None,
        "record": text(_JSON.encode(alert).decode()),
    }


def past_alert(row: RowMapping) -> PastAlert:
    """The record of a row."""
    kept = {name: row[name] for name in ("number", "seen_us", "acknowledged_us", "acknowledged_by")}
    return msgspec.convert({**msgspec.json.decode(row["record"]), **kept}, PastAlert)


def subject_key(subject: str) -> bytes | None:
    """The key of a subject that is an address, None of another."""
    try:
        return address_key(subject)
    except (OSError, ValueError):
        return None


_SAME_OF_TRACES = [
    "number", "seen_us", "source", "subject_kind", "subject", "start_us", "end_us", "flows", "cut", "suspicion",
    "suspicious",
]  # fmt: skip


def past_trace(row: RowMapping) -> PastTrace:
    """The record of a row."""
    return PastTrace(
        **{name: row[name] for name in _SAME_OF_TRACES},
        verdict=_verdict(row),
        top_flows=_TOP_FLOWS.decode(row["top_flows"]),
    )
