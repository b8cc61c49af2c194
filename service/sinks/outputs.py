"""The outputs of a service: who is told what, and their life from start to shutdown."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tapline.models.flow import Flow
from tapline.models.packed_packets import head_bytes
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Part, Supervisor
from tapline.service.sinks.delivery import Delivery
from tapline.service.sinks.disk_spool import DiskSpool
from tapline.service.sinks.eve_records import eve_alert, eve_flow, eve_trace
from tapline.service.sinks.output_queue import Pending
from tapline.service.sinks.output_url import (
    RECORD_KINDS,
    EveOutput,
    KafkaOutput,
    Output,
    RecordKind,
    SyslogOutput,
    parse_outputs,
)
from tapline.service.sinks.sender import Sender
from tapline.service.traces.trace_verdict import TraceVerdict

SPOOLS = "outputs"
"""The folder of spools in the data directory."""

_NOT_IN_NAMES = re.compile("[^A-Za-z0-9.-]+")

_FLOW_BYTES, _TRACE_BYTES, _TOP_FLOW_BYTES, _ALERT_BYTES = 1500, 1500, 500, 2000
"""What records take in memory before they are made, beside their lists and contents."""


class Outputs:
    """Sends verdicts and alerts to where the setting `output` says. An observer of the service: in its event loop it
    never waits, and one output holds up no other.
    """

    def __init__(self, texts: Sequence[str], data_dir: Path, metrics: Metrics) -> None:
        """Spools are below `data_dir`.

        Raises:
            OutputError: an output is not understood, needs what is not installed, or a file of it cannot be read; a
                spool cannot be used.
        """
        outputs = parse_outputs(texts)
        self.deliveries = [
            Delivery(output, make_sender(output), metrics, _spool(output, data_dir)) for output in outputs
        ]
        _warn_of_others(outputs, data_dir)
        self._takers = {
            (kind, final): [
                delivery
                for output, delivery in zip(outputs, self.deliveries, strict=True)
                if kind in output.records and (final or output.early == "yes")
            ]
            for kind in RECORD_KINDS
            for final in (True, False)
        }

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Send the verdict on a flow; flows without one are not sent."""
        if verdict is not None and (takers := self._takers["flows", verdict.final]):
            _put(takers, "flows", _flow_bytes(flow), partial(eve_flow, _now_us(), source, flow, verdict))

    def trace(self, trace: TraceVerdict) -> None:
        """Send the verdict on a trace."""
        if takers := self._takers["traces", trace.verdict.final]:
            size = _TRACE_BYTES + _TOP_FLOW_BYTES * len(trace.top_flows)
            _put(takers, "traces", size, partial(eve_trace, _now_us(), trace))

    def alert(self, alert: Alert) -> None:
        """Send an alert."""
        if takers := self._takers["alerts", True]:
            _put(takers, "alerts", _ALERT_BYTES, partial(eve_alert, alert))

    def reopen(self) -> None:
        """Open files anew, and try again at once what is away."""
        for delivery in self.deliveries:
            delivery.reopen()

    def start(self, supervisor: Supervisor) -> list[Part]:
        """Start sending."""
        return [supervisor.start(f"output {delivery.name}", delivery.run) for delivery in self.deliveries]

    async def stop(self, limit_seconds: float) -> None:
        """Send what waits within a limit, all at a time; what then waits is kept in spools, or dropped."""
        await asyncio.gather(*(delivery.stop(limit_seconds) for delivery in self.deliveries))


def make_sender(output: Output) -> Sender:
    """What sends to an output.

    Raises:
        OutputError: a file of it cannot be read, or what it needs is not installed.
    """
    # each kind imports what only it needs
    if isinstance(output, EveOutput):
        from tapline.service.sinks.eve_file import EveFile

        return EveFile(output)
    if isinstance(output, SyslogOutput):
        from tapline.service.sinks.syslog_sender import SyslogSender

        return SyslogSender(output)
    if isinstance(output, KafkaOutput):
        from tapline.service.sinks.kafka_sender import KafkaSender

        return KafkaSender(output)
    from tapline.service.sinks.webhook_sender import WebhookSender

    return WebhookSender(output)


def _spool(output: Output, data_dir: Path) -> DiskSpool | None:
    if not output.spool_mb:
        return None
    return DiskSpool(data_dir / SPOOLS / _folder(output), output.spool_mb << 20)


def _folder(output: Output) -> str:
    """The name of an output's folder: readable, short enough, and of no other output."""
    digest = hashlib.blake2b(output.name.encode(), digest_size=4).hexdigest()
    return f"{_NOT_IN_NAMES.sub('_', output.name)[:80]}-{digest}"


def _warn_of_others(outputs: Sequence[Output], data_dir: Path) -> None:
    """Say which spools no output sends any more."""
    folders = {_folder(output) for output in outputs if output.spool_mb}
    for left in sorted((data_dir / SPOOLS).glob("*/*.ndjson")):
        if left.parent.name not in folders:
            log.warning("records wait for an output that is not set any more", file=left)


def _put(takers: Sequence[Delivery], kind: RecordKind, size: int, make: partial[bytes]) -> None:
    pending = Pending(kind, size, make)
    for taker in takers:
        taker.put(pending)


def _now_us() -> int:
    return time.time_ns() // 1000


def _flow_bytes(flow: Flow) -> int:
    content = len(flow.orig_bytes) + len(flow.resp_bytes) + 100 * len(flow.heads) + head_bytes(flow.heads)
    return _FLOW_BYTES + 36 * len(flow.payload_lengths) + content
