"""Records in Suricata's EVE JSON: what is decided, under the names that SIEMs already parse, and the rest in `tapline`.

Names, types and the form of times are those of Suricata's `etc/schema.json` (8.0); `tapline` and the event type
`tapline_trace` are ours. Every output sends these records, in one line each.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from tapline.models.flow import Flow
from tapline.models.server_name import server_name
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert, AlertKind, Severity
from tapline.service.community_id import community_id
from tapline.service.traces.trace_verdict import TraceVerdict

FLOW_EVENT, ALERT_EVENT, TRACE_EVENT = "flow", "alert", "tapline_trace"

GENERATOR_ID = 27759
"""`alert.gid`, which Suricata's own rules have at 1: no signature identifier of ours is one of theirs."""

EVE_SEVERITY: dict[Severity, int] = {"critical": 1, "high": 2, "medium": 3, "low": 4}
"""As Suricata's priorities: 1 matters most."""

CATEGORIES: dict[AlertKind, str] = {
    "flow": "Flow verdict", "trace": "Trace verdict", "rate": "Verdict rate", "drift": "Model drift",
}  # fmt: skip

_PROTOCOLS = {
    "tcp": "TCP", "udp": "UDP", "2": "IGMP", "41": "IPv6", "47": "GRE", "50": "ESP", "51": "AH", "89": "OSPFIGP",
    "103": "PIM", "132": "SCTP",
}  # fmt: skip
"""What Suricata calls them (IANA's names, upper-case); others by their numbers."""

_APP_PROTOCOLS = {
    "ssl": "tls", "dns": "dns", "http": "http", "ssh": "ssh", "smtp": "smtp", "ftp": "ftp", "ftp-data": "ftp-data",
    "smb": "smb", "dce_rpc": "dcerpc", "rdp": "rdp", "krb": "krb5", "krb_tcp": "krb5", "dhcp": "dhcp", "ntp": "ntp",
    "snmp": "snmp", "sip": "sip", "mqtt": "mqtt", "quic": "quic", "imap": "imap", "pop3": "pop3", "ldap_tcp": "ldap",
    "ldap_udp": "ldap", "modbus": "modbus", "dnp3_tcp": "dnp3", "rfb": "rfb", "websocket": "websocket", "tftp": "tftp",
}  # fmt: skip
"""Zeek's names of services, and Suricata's of the same protocols."""

_FLOW_ID_MASK = (1 << 51) - 1
"""Suricata's flow identifiers have 51 bits, so that a double holds them (`FlowGetId`)."""

_ENCODER = msgspec.json.Encoder()


def timestamp(at_us: int) -> str:
    """A time as Suricata writes it, in UTC: `2017-04-07T22:24:37.251547+0000`; microseconds since 1970."""
    seconds, micros = divmod(at_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06}+0000"


def flow_id(uid: str) -> int:
    """The number of a flow: the same for all records that name its uid, whichever service writes them."""
    return int.from_bytes(hashlib.blake2b(uid.encode(errors="replace"), digest_size=8).digest()) & _FLOW_ID_MASK


def signature_id(rule: str) -> int:
    """The number of a rule, from 1 to 2^31 - 1: the same for its name everywhere."""
    digest = hashlib.blake2b(rule.encode(errors="replace"), digest_size=4).digest()
    return int.from_bytes(digest) % (2**31 - 1) + 1


def eve_flow(seen_us: int, source: str, flow: Flow, verdict: Verdict) -> bytes:
    """The record of a flow with its verdict; `seen_us`: when that came."""
    end_us = flow.start_us + flow.duration_us
    return _line({
        "timestamp": timestamp(seen_us),
        "flow_id": flow_id(flow.uid),
        "event_type": FLOW_EVENT,
        **_endpoints(flow.proto, flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p),
        **_app_proto(flow.service),
        "community_id": community_id(flow),
        "flow": {
            "pkts_toserver": flow.orig_pkts,
            "pkts_toclient": flow.resp_pkts,
            "bytes_toserver": flow.orig_ip_bytes,
            "bytes_toclient": flow.resp_ip_bytes,
            "start": timestamp(flow.start_us),
            "end": timestamp(end_us),
            "age": end_us // 1_000_000 - flow.start_us // 1_000_000,
            "state": "closed" if flow.complete else "established" if flow.resp_pkts else "new",
        },
        "tapline": {
            "uid": flow.uid, **_verdict(verdict), **_filled(
                sensor=flow.sensor, source=source, conn_state=flow.conn_state, server_name=server_name(flow),
            ),
        },
    })  # fmt: skip


def eve_trace(seen_us: int, trace: TraceVerdict) -> bytes:
    """The record of a trace with its verdict: its subject is where it says whose flows they are."""
    return _line({
        "timestamp": timestamp(seen_us),
        "event_type": TRACE_EVENT,
        **_subject(trace.subject_kind, trace.subject),
        "tapline": {
            **_verdict(trace.verdict),
            **_filled(source=trace.source, suspicion=trace.suspicion, suspicious=trace.suspicious),
            "subject": trace.subject,
            "subject_kind": trace.subject_kind,
            "start": timestamp(trace.start_us),
            "end": timestamp(trace.end_us),
            "flows": trace.flows,
            "cut": trace.cut,
            "top_flows": [
                {
                    "uid": flow.uid,
                    "flow_id": flow_id(flow.uid),
                    "community_id": flow.community_id,
                    **_endpoints(flow.proto, flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p),
                    "start": timestamp(flow.start_us),
                    "label": flow.label,
                    "share": flow.share,
                    **_filled(server_name=flow.server_name),
                }
                for flow in trace.top_flows
            ],
        },
    })  # fmt: skip


def eve_alert(alert: Alert) -> bytes:
    """The record of an alert; what it is about stands where the records of flows and traces have it."""
    given = msgspec.to_builtins(alert)  # without what does not apply
    return _line({
        "timestamp": timestamp(alert.time_us),
        **({"flow_id": flow_id(alert.uid)} if alert.uid else {}),
        "event_type": ALERT_EVENT,
        **_alert_endpoints(alert),
        **_filled(community_id=alert.community_id),
        "alert": {
            "action": "allowed",
            "gid": GENERATOR_ID,
            "signature_id": signature_id(alert.rule),
            "rev": 1,
            "signature": f"TAPLINE {alert.rule}",
            "category": CATEGORIES.get(alert.kind, "Verdict"),
            "severity": EVE_SEVERITY.get(alert.severity, 3),
        },
        **({"flow": {"start": timestamp(alert.start_us)}} if alert.uid and alert.start_us else {}),
        "tapline": {
            "alert_id": alert.id,
            "kind": alert.kind,
            "rule": alert.rule,
            "severity": alert.severity,
            "message": alert.message,
            "suppressed": alert.suppressed,
            "model": alert.model,
            "version": alert.version,
            **({"start": timestamp(alert.start_us), "end": timestamp(alert.end_us)} if alert.start_us else {}),
            **({"unknown": alert.unknown, "final": alert.final} if alert.label else {}),
            **{name: given[name] for name in _SAME_OF_ALERTS if name in given},
        },
    })  # fmt: skip


_SAME_OF_ALERTS = [
    "uid", "sensor", "source", "label", "nearest", "confidence", "server_name", "port_label", "unexpected_port",
    "subject", "subject_kind", "flows", "suspicion", "suspicious", "top_uids", "matches", "reason",
]  # fmt: skip


def _line(record: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(record)
    except UnicodeEncodeError:  # lone surrogates, in text from outside
        return _ENCODER.encode(_whole(record))


def _whole(value: Any) -> Any:
    """A value without lone surrogates in its texts."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    return [_whole(inner) for inner in value] if isinstance(value, list) else value


def _verdict(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {
        "label": verdict.label,
        "nearest": verdict.nearest,
        "confidence": verdict.confidence,
        "unknown": verdict.unknown,
        "final": verdict.final,
        "model": verdict.model,
        "version": verdict.version,
    }
    if verdict.port_label is not msgspec.UNSET:
        found |= _filled(port_label=verdict.port_label, unexpected_port=bool(verdict.unexpected_port))
    return found


def _filled(**values: Any) -> dict[str, Any]:
    """Values that say something."""
    return {name: value for name, value in values.items() if value not in (None, "", [])}


def _endpoints(proto: str, orig_h: str, orig_p: int | None, resp_h: str, resp_p: int | None) -> dict[str, Any]:
    """Who spoke to whom; ICMP has a type in the place of ports, other protocols have neither."""
    found: dict[str, Any] = {"src_ip": orig_h, "dest_ip": resp_h}
    if proto in ("tcp", "udp", "132"):
        found = {"src_ip": orig_h, "src_port": orig_p, "dest_ip": resp_h, "dest_port": resp_p}
    elif proto == "icmp":
        found["icmp_type"] = orig_p
        return {**found, "proto": "IPv6-ICMP" if ":" in orig_h else "ICMP"}
    return {**found, "proto": _PROTOCOLS.get(proto, proto)}


def _alert_endpoints(alert: Alert) -> dict[str, Any]:
    if alert.orig_h and alert.resp_h and alert.proto:
        return _filled(**_endpoints(alert.proto, alert.orig_h, alert.orig_p, alert.resp_h, alert.resp_p))
    if alert.subject:
        return _subject(alert.subject_kind, alert.subject)
    return _filled(src_ip=alert.orig_h, dest_ip=alert.resp_h)


def _subject(kind: str, subject: str) -> dict[str, Any]:
    """The subject of a trace in the fields of what it is."""
    if kind == "mac":
        return {"ether": {"src_mac": subject}}
    if kind == "responder":
        return {"dest_ip": subject}
    first, _, second = subject.partition(" - ")
    return _filled(src_ip=first, dest_ip=second)


def _app_proto(service: str) -> dict[str, str]:
    """What Suricata calls the first of Zeek's services that it knows; nothing where it knows none."""
    known = [_APP_PROTOCOLS[name] for name in service.lower().split(",") if name in _APP_PROTOCOLS]
    return {"app_proto": known[0]} if known else {}
