"""Every Prometheus metric of the service, in base units; the parts count through this, `/metrics` exposes it."""

from __future__ import annotations

import collections
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from tapline.models.verdict import Verdict
from tapline.service.engines.engine import Timing
from tapline.service.gpu import GpuCollector

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_POWERS = tuple(float(2**n) for n in range(0, 17, 2))


disable_created_metrics()  # type: ignore[no-untyped-call]


class BatchHistogram(Histogram):
    """A histogram that takes many values at once, at little more than the cost of one."""

    def observe_all(self, values: Sequence[float]) -> None:
        """As `observe` of each."""
        counts = collections.Counter(bisect_left(self._upper_bounds, value) for value in values)
        for bucket, number in counts.items():
            self._buckets[bucket].inc(number)
        self._sum.inc(sum(values))


class Metrics:
    """One set of metrics with a registry of its own, so that several services can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._add_requests(registry)
        self._add_verdicts(registry)
        self._add_engines(registry)
        self.part_up = Gauge(
            "tapline_part_up", "1 while a long-lived part of the service runs, 0 while it is down", ["part"],
            registry=registry,
        )  # fmt: skip
        self.part_deaths = Counter(
            "tapline_part_deaths", "Times that a part ended by an error and was started again", ["part"],
            registry=registry,
        )  # fmt: skip
        self._add_live(registry)
        self._add_traces(registry)
        self._add_history(registry)
        self._add_outputs(registry)
        self._add_alerts(registry)
        self._add_drift(registry)

    def count_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Count verdicts; a flow counts once in each stage."""
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        unexpected: collections.Counter[tuple[str, str]] = collections.Counter()
        for verdict in verdicts:
            stage = "final" if verdict.final else "early"
            counts[verdict.label, stage] += 1
            if verdict.unexpected_port:
                unexpected[verdict.model, stage] += 1
        for labels, number in counts.items():
            self.verdicts.labels(*labels).inc(number)
        for labels, number in unexpected.items():
            self.unexpected_ports.labels(*labels).inc(number)

    def observe_batch(self, timing: Timing, flows: int) -> None:
        """Count a batch of the engine and what it cost."""
        self.batch_flows.observe(flows)
        self.batch_tokens.observe(timing.tokens)
        self.encode_seconds.observe(timing.encode_seconds)
        self.compute_seconds.observe(timing.compute_seconds)
        self.computed_tokens.labels("real").inc(timing.tokens)
        self.computed_tokens.labels("padding").inc(timing.padding_tokens)
        self.lengths_out_of_vocabulary.inc(timing.lengths_out_of_vocabulary)
        self.student_flows.inc(timing.answered_flows)

    def _add_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "tapline_requests", "HTTP requests by route and status", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "tapline_request_seconds", "Time to answer a request", ["route"], buckets=_SLOW, registry=registry
        )
        self.requests_refused = Counter(
            "tapline_requests_refused",
            "Requests that the gate refused: `foreign_host`, `foreign_page`, `unauthorized`, `scope`, `rate_limit`, "
            "`too_many_wrong_keys`, `too_large`",
            ["reason"], registry=registry,
        )  # fmt: skip
        self.upload_bytes = Counter("tapline_upload_bytes", "Bytes of captures received", registry=registry)
        self.uploads_active = Gauge("tapline_uploads_active", "Captures being worked on", registry=registry)
        self.jobs = Gauge("tapline_jobs", "Jobs that have not ended, by state", ["state"], registry=registry)
        self.jobs_ended = Counter("tapline_jobs_ended", "Jobs that ended, by how", ["state"], registry=registry)
        self.jobs_removed = Counter(
            "tapline_jobs_removed", "Ended jobs deleted without being asked to: for their `age`, or for want of `room`",
            ["reason"], registry=registry,
        )  # fmt: skip
        self.packets = Counter("tapline_packets", "Packets read from captures", registry=registry)
        self.packets_skipped = Counter(
            "tapline_packets_skipped", "Packets left out while reading, by reason", ["reason"], registry=registry
        )

    def _add_verdicts(self, registry: CollectorRegistry) -> None:
        self.model = Info("tapline_model", "A model that serves", ["name"], registry=registry)
        self.verdicts = Counter(
            "tapline_verdicts", "Flow verdicts by label (`unknown` for unknown ones), early and final apart",
            ["label", "stage"], registry=registry,
        )  # fmt: skip
        self.unexpected_ports = Counter(
            "tapline_unexpected_ports",
            "Flow verdicts on a port that says something else, by model, early and final apart", ["model", "stage"],
            registry=registry,
        )  # fmt: skip
        self.flows_left_out = Counter(
            "tapline_flows_left_out", "Flows that were not classified, by reason", ["reason"], registry=registry
        )
        self.failures = Counter(
            "tapline_failures", "Flows that got no verdict: REJECTED, CANCELED, BACKEND, OTHER", ["reason"],
            registry=registry,
        )  # fmt: skip

    def _add_engines(self, registry: CollectorRegistry) -> None:
        self.queue_flows = Gauge("tapline_queue_flows", "Flows waiting for the engine", registry=registry)
        self.queue_seconds = BatchHistogram(
            "tapline_queue_seconds", "Time a flow waits for its batch", buckets=_FAST, registry=registry
        )
        self.encode_seconds = Histogram(
            "tapline_encode_seconds", "Time to encode a batch", buckets=_FAST, registry=registry
        )
        self.compute_seconds = Histogram(
            "tapline_compute_seconds", "Time of the engine for a batch", buckets=_SLOW, registry=registry
        )
        self.batch_flows = Histogram("tapline_batch_flows", "Flows in a batch", buckets=_POWERS, registry=registry)
        self.batch_tokens = Histogram(
            "tapline_batch_tokens", "Tokens in a batch, without padding", buckets=(*_POWERS, 2.0**18), registry=registry
        )
        self.computed_tokens = Counter(
            "tapline_computed_tokens", "Tokens that the engine computed: real ones, and padding", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.student_flows = Counter(
            "tapline_student_flows", "Flows that the student of a model answered in its place", registry=registry
        )
        self.lengths_out_of_vocabulary = Counter(
            "tapline_lengths_out_of_vocabulary", "Payload lengths that the model reads as [UNK]", registry=registry
        )

    def _add_live(self, registry: CollectorRegistry) -> None:
        self.bus_connected = Gauge("tapline_bus_connected", "1 while a sensor is connected", ["url"], registry=registry)
        self.bus_connections = Counter(
            "tapline_bus_connections", "Connections made to a sensor's bus", ["url"], registry=registry
        )
        self.bus_flows = Counter(
            "tapline_bus_flows", "Flows received from a sensor, early and final", ["sensor", "kind"], registry=registry
        )
        self.bus_missed = Counter(
            "tapline_bus_missed_flows", "Flows of a sensor that never came, by its numbering", ["sensor"],
            registry=registry,
        )  # fmt: skip
        self.bus_refused = Counter(
            "tapline_bus_refused_events",
            "Events and flows refused: malformed, of another version, a fault of ours, or late (stopping)",
            ["url", "reason"], registry=registry,
        )  # fmt: skip
        self.sensor_counts = Gauge(
            "tapline_sensor_counts", "A sensor's own counters since its start", ["sensor", "counter"], registry=registry
        )
        self.sensor_loss = Gauge(
            "tapline_sensor_loss_ratio", "Share of traffic that Zeek itself missed", ["sensor"], registry=registry
        )
        self.live_queue_flows = Gauge("tapline_live_queue_flows", "Live flows waiting", registry=registry)
        self.live_flows = Counter(
            "tapline_live_flows",
            "Live flows by what became of them: received = delivered + superseded + shed + skipped + failed + waiting; "
            "`flows` counts each uid once, `reused` the deliveries that needed no computing, `expired` those of the "
            "shed that had waited past their deadline, `unread` those refused before they were read from their batch",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.live_seconds = BatchHistogram(
            "tapline_live_seconds", "From a flow's arrival to its verdict's delivery", buckets=_FAST, registry=registry
        )
        self.verdicts_returned = Counter(
            "tapline_verdicts_returned", "Verdicts that Zeek acknowledged", ["url"], registry=registry
        )
        self.verdicts_lost = Counter(
            "tapline_verdicts_lost", "Verdicts that could not be returned to Zeek", ["url"], registry=registry
        )

    def _add_traces(self, registry: CollectorRegistry) -> None:
        self.trace_windows_open = Gauge(
            "tapline_trace_windows_open", "Live windows that are open, by trace model", ["model"], registry=registry
        )
        self.trace_open_flows = Gauge(
            "tapline_trace_open_flows", "Flows in open live windows, by trace model", ["model"], registry=registry
        )
        self.trace_windows_closed = Counter(
            "tapline_trace_windows_closed",
            "Live windows closed: `time` when they were over, `end` with their source, `evicted` for want of room, "
            "`swapped` with their model",
            ["model", "reason"], registry=registry,
        )  # fmt: skip
        self.trace_windows_unscored = Counter(
            "tapline_trace_windows_unscored",
            "Live windows without a verdict: `below_min_flows`, or `shed` because too many waited", ["model", "reason"],
            registry=registry,
        )  # fmt: skip
        self.trace_flows = Counter(
            "tapline_trace_flows",
            "Live flows by what became of them in the traces of a model: `flows` in a window, `replaced` by a newer "
            "form, `late` after their window, `cut` from a window that had too many, `unread` where its encoder failed",
            ["model", "outcome"], registry=registry,
        )  # fmt: skip
        self.trace_verdicts = Counter(
            "tapline_trace_verdicts", "Live trace verdicts by model, label (`unknown` for unknown ones) and stage",
            ["model", "label", "stage"], registry=registry,
        )  # fmt: skip
        self.suspicious_traces = Counter(
            "tapline_suspicious_traces",
            "Live trace verdicts that are suspicious, by model, early and final apart", ["model", "stage"],
            registry=registry,
        )  # fmt: skip
        self.trace_failures = Counter(
            "tapline_trace_failures", "Live windows on which the engine failed", ["model"], registry=registry
        )
        self.trace_state_failures = Counter(
            "tapline_trace_state_failures",
            "Times that open windows, or that one was closed, could not be saved", ["model"],
            registry=registry,
        )  # fmt: skip
        self.trace_score_seconds = Histogram(
            "tapline_trace_score_seconds", "Time to score a batch of windows", ["model"], buckets=_SLOW,
            registry=registry,
        )  # fmt: skip

    def _add_history(self, registry: CollectorRegistry) -> None:
        self.history_records = Counter(
            "tapline_history_records",
            "Verdicts, and flows without one, by what became of them in the history: `kept`, `shed` because too many "
            "waited, `failed` because the database refused them",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.history_pending = Gauge(
            "tapline_history_pending", "Records that wait to be written to the history", registry=registry
        )
        self.history_up = Gauge(
            "tapline_history_up", "1 while the history can be written, 0 while it cannot", registry=registry
        )
        self.history_bytes = Gauge(
            "tapline_history_bytes", "Size of the history, without room that is free", registry=registry
        )
        self.history_write_seconds = Histogram(
            "tapline_history_write_seconds", "Time to write a batch to the history", buckets=_SLOW, registry=registry
        )
        self.stream_clients = Gauge("tapline_stream_clients", "Clients of /v1/stream", registry=registry)
        self.stream_missed = Counter(
            "tapline_stream_missed", "Verdicts that clients of /v1/stream were too slow for", registry=registry
        )

    def _add_outputs(self, registry: CollectorRegistry) -> None:
        self.output_records = Counter(
            "tapline_output_records",
            "Records by what became of them at an output: `received` + `recovered` from an earlier run's spool = "
            "`written` + `dropped` for want of room + `failed` because it will never take them + those that wait",
            ["output", "outcome"], registry=registry,
        )  # fmt: skip
        self.output_queue = Gauge(
            "tapline_output_queue_records", "Records that wait in memory for an output", ["output"], registry=registry
        )
        self.output_spool = Gauge(
            "tapline_output_spool_records", "Records that wait on disk for an output", ["output"], registry=registry
        )
        self.output_up = Gauge(
            "tapline_output_up", "1 while an output takes what is sent, 0 while it does not", ["output"],
            registry=registry,
        )  # fmt: skip

    def _add_alerts(self, registry: CollectorRegistry) -> None:
        self.alerts = Counter("tapline_alerts", "Alerts that rules made", ["rule", "severity"], registry=registry)
        self.alerts_suppressed = Counter(
            "tapline_alerts_suppressed", "Matches that made no alert, for there was one on the same shortly before",
            ["rule"], registry=registry,
        )  # fmt: skip
        self.alert_rules = Gauge("tapline_alert_rules", "Alert rules at work", registry=registry)
        self.alert_rules_up = Gauge(
            "tapline_alert_rules_up", "1 while the newest alert rules are at work, 0 while they have mistakes",
            registry=registry,
        )  # fmt: skip
        self.alert_rules_read = Counter(
            "tapline_alert_rules_read", "Times that alert rules were read, by what came of it: `used`, or `refused`",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.alerts_forgotten = Counter(
            "tapline_alerts_forgotten",
            "What alert rules forgot for want of room: `early` verdicts that wait for their final ones, last alerts "
            "that had `suppressed` others, what was `counted`",
            ["memory"], registry=registry,
        )  # fmt: skip

    def _add_drift(self, registry: CollectorRegistry) -> None:
        self.drift_distance = Gauge(
            "tapline_drift_distance",
            "How far what a model sees is from what was expected, 0 (the same) to 1: mix of `labels`, `confidence`, "
            "`unknown` share or `embedding`, against its `baseline` or `last_week`",
            ["model", "measure", "against"], registry=registry,
        )  # fmt: skip
        self.drift_limit = Gauge(
            "tapline_drift_limit", "From where on somebody should look at `tapline_drift_distance`; 1: never",
            ["model", "measure", "against"], registry=registry,
        )  # fmt: skip


def reference_table() -> str:
    """The metrics as a Markdown table, in the order of their names; `docs/metrics.md` holds it."""
    rows = ["| metric | type | labels | what |", "|---|---|---|---|"]
    metrics = Metrics()
    own = [collector for collector in vars(metrics).values() if isinstance(collector, MetricWrapperBase)]
    for collector in sorted(own, key=lambda found: next(iter(found.describe())).name):
        described = next(iter(collector.describe()))
        suffix = {"counter": "_total", "info": "_info"}.get(described.type, "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        rows.append(f"| `{described.name}{suffix}` | {described.type} | {labels} | {described.documentation} |")
    for family in GpuCollector(None).describe():
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        rows.append(f"| `{family.name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows) + "\n"


_PAGE = """# Metrics

What `/metrics` exposes, in Prometheus' base units, beside the usual ones of the process and of Python. Histograms have
`_bucket`, `_sum` and `_count`. This page is made by `python -m tapline.service.metrics > docs/metrics.md`.

"""

if __name__ == "__main__":
    print(_PAGE + reference_table(), end="")
