"""Filters as conditions of records that are not in the database yet; those of queries are in `conditions`."""

from __future__ import annotations

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.history.addresses import address_key, key_range
from tapline.service.history.filters import AlertFilter, FlowFilter, TraceFilter, VerdictFilter
from tapline.service.history.rows import subject_key
from tapline.service.traces.trace_verdict import TraceVerdict


def flow_matches(wanted: FlowFilter, source: str, flow: Flow, verdict: Verdict) -> bool:
    """Whether a verdict on a flow is asked for; times are not looked at."""
    if wanted.host is not None:
        first, last = key_range(wanted.host)
        if not any(first <= address_key(address) <= last for address in (flow.orig_h, flow.resp_h)):
            return False
    unexpected = verdict.unexpected_port is True
    return (
        _verdict_matches(wanted, source, verdict)
        and wanted.port in (None, flow.resp_p)
        and wanted.sensor in (None, flow.sensor)
        and wanted.uid in (None, flow.uid)
        and wanted.unexpected_port in (None, unexpected)
    )


def trace_matches(wanted: TraceFilter, trace: TraceVerdict) -> bool:
    """Whether a verdict on a trace is asked for; times are not looked at."""
    if wanted.host is not None:
        first, last = key_range(wanted.host)
        key = subject_key(trace.subject)
        if key is None or not first <= key <= last:
            return False
    return (
        _verdict_matches(wanted, trace.source, trace.verdict)
        and (wanted.subject is None or wanted.subject.lower() == trace.subject.lower())
        and wanted.suspicious in (None, trace.suspicious is True)
    )


def alert_matches(wanted: AlertFilter, alert: Alert) -> bool:
    """Whether an alert is asked for; times, and whether somebody has seen to it, are not looked at."""
    if wanted.host is not None:
        first, last = key_range(wanted.host)
        keys = [subject_key(address) for address in (alert.orig_h, alert.resp_h, alert.subject)]
        if not any(key is not None and first <= key <= last for key in keys):
            return False
    return (
        alert.severity in wanted.severities
        and wanted.rule in (None, alert.rule)
        and wanted.kind in (None, alert.kind)
        and wanted.label in (None, alert.label)
        and wanted.model in (None, alert.model)
        and wanted.uid in (None, alert.uid)
    )


def _verdict_matches(wanted: VerdictFilter, source: str, verdict: Verdict) -> bool:
    return (
        wanted.label in (None, verdict.label)
        and wanted.nearest in (None, verdict.nearest)
        and wanted.unknown in (None, verdict.unknown)
        and wanted.model in (None, verdict.model)
        and wanted.source in (None, source)
        and wanted.final in (None, verdict.final)
        and (wanted.min_confidence is None or verdict.confidence >= wanted.min_confidence)
        and (wanted.max_confidence is None or verdict.confidence <= wanted.max_confidence)
    )
