"""Grafana's dashboard of tapline, as a table; run, it writes what `dashboards/tapline.json` beside it holds."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WHICH = '{instance=~"$instance"}'


class Panel(NamedTuple):
    """One panel: its queries by legend; in them `@` stands for the instances chosen, `5m` for what fits the zoom."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8


ROWS: dict[str, list[Panel]] = {
    "Now": [
        Panel("Services up", "Services that Prometheus can scrape", "none", {"": 'sum(up{job="tapline"})'}, "stat", 4),
        Panel("Sensors connected", "Buses with a connection", "none", {"": "sum(tapline_bus_connected@)"}, "stat", 4),
        Panel("Flows", "Live flows received", "cps",
              {"": 'sum(rate(tapline_live_flows_total{outcome="received",instance=~"$instance"}[5m]))'}, "stat", 4),
        Panel("Unknown", "Share of final flow verdicts that the model does not know", "percentunit",
              {"": 'sum(rate(tapline_verdicts_total{label="unknown",stage="final",instance=~"$instance"}[5m])) / '
                   'sum(rate(tapline_verdicts_total{stage="final",instance=~"$instance"}[5m]))'}, "stat", 4),
        Panel("Suspicious traces", "Final trace verdicts that are suspicious, in the time shown", "none",
              {"": 'sum(increase(tapline_suspicious_traces_total{stage="final",instance=~"$instance"}[$__range]))'},
              "stat", 4),
        Panel("Parts down", "Long-lived parts of services that are not running", "none",
              {"": "count(tapline_part_up@ == 0) or vector(0)"}, "stat", 4),
    ],
    "Traffic and verdicts": [
        Panel("Flow verdicts by label", "Final verdicts", "cps",
              {"{{label}}": 'sum by (label) (rate(tapline_verdicts_total{stage="final",instance=~"$instance"}[5m]))'},
              width=12),
        Panel("Trace verdicts by label", "Final verdicts", "cps",
              {"{{model}}: {{label}}":
               'sum by (model, label) (rate(tapline_trace_verdicts_total{stage="final",instance=~"$instance"}[5m]))'},
              width=12),
        Panel("What became of live flows", "Shed ones got no verdict for want of time", "cps",
              {"{{outcome}}": "sum by (outcome) (rate(tapline_live_flows_total@[5m]))"}),
        Panel("Unexpected ports", "Flow verdicts on a port that says something else", "cps",
              {"{{model}}, {{stage}}": "sum by (model, stage) (rate(tapline_unexpected_ports_total@[5m]))"}),
        Panel("Left out", "Flows that were not classified, by reason", "cps",
              {"{{reason}}": "sum by (reason) (rate(tapline_flows_left_out_total@[5m]))"}),
    ],
    "Alerts and drift": [
        Panel("Alerts by rule", "In a quarter of an hour", "none",
              {"{{rule}}, {{severity}}": "sum by (rule, severity) (increase(tapline_alerts_total@[15m]))"}, width=12),
        Panel("Drift", "Distance of what a model sees from what was expected, 0 to 1", "percentunit",
              {"{{model}}: {{measure}}, {{against}}": "tapline_drift_distance@"}, width=12),
    ],
    "Sensors": [
        Panel("Flows by sensor", "Early and final", "cps",
              {"{{sensor}}, {{kind}}": "sum by (sensor, kind) (rate(tapline_bus_flows_total@[5m]))"}),
        Panel("Lost on the bus", "By the numbering of sensors", "cps",
              {"{{sensor}}": "sum by (sensor) (rate(tapline_bus_missed_flows_total@[5m]))",
               "refused: {{reason}}": "sum by (reason) (rate(tapline_bus_refused_events_total@[5m]))"}),
        Panel("Traffic that Zeek missed", "Zeek's own estimate", "percentunit",
              {"{{sensor}}": "tapline_sensor_loss_ratio@"}),
    ],
    "Latency and engine": [
        Panel("Arrival to verdict", "Live flows", "s",
              {"median": "histogram_quantile(0.5, sum by (le) (rate(tapline_live_seconds_bucket@[5m])))",
               "99 %": "histogram_quantile(0.99, sum by (le) (rate(tapline_live_seconds_bucket@[5m])))"}),
        Panel("Where the time goes", "Mean of a flow in the queue, and of a batch", "s",
              {name: f"sum(rate(tapline_{name}_seconds_sum@[5m])) / sum(rate(tapline_{name}_seconds_count@[5m]))"
               for name in ("queue", "encode", "compute")}),
        Panel("Waiting", "Flows in the live queue and in the model's queue", "none",
              {"live": "sum(tapline_live_queue_flows@)", "model": "sum(tapline_queue_flows@)"}),
        Panel("Flows in a batch", "Mean", "none",
              {"flows": "sum(rate(tapline_batch_flows_sum@[5m])) / sum(rate(tapline_batch_flows_count@[5m]))"}),
        Panel("Failures", "Flows without a verdict, and windows on which an engine failed", "cps",
              {"{{reason}}": "sum by (reason) (rate(tapline_failures_total@[5m]))",
               "traces, {{model}}": "sum by (model) (rate(tapline_trace_failures_total@[5m]))"}),
        Panel("Open trace windows", "By model", "none",
              {"{{model}}": "sum by (model) (tapline_trace_windows_open@)"}),
    ],
    "Results and the process": [
        Panel("History", "Records by what became of them", "cps",
              {"{{outcome}}": "sum by (outcome) (rate(tapline_history_records_total@[5m]))"}),
        Panel("Size of the history", "Without room that is free", "bytes", {"{{instance}}": "tapline_history_bytes@"}),
        Panel("Verdicts back to Zeek", "Acknowledged, and lost", "cps",
              {"returned": "sum(rate(tapline_verdicts_returned_total@[5m]))",
               "lost": "sum(rate(tapline_verdicts_lost_total@[5m]))"}),
        Panel("Outputs", "Records by output and what became of them", "cps",
              {"{{output}}: {{outcome}}": "sum by (output, outcome) (rate(tapline_output_records_total@[5m]))"}),
        Panel("Waiting for outputs", "In memory and on disk", "none",
              {"{{output}}": "sum by (output) (tapline_output_queue_records@)",
               "{{output}}, on disk": "sum by (output) (tapline_output_spool_records@)"}),
        Panel("Requests refused", "By the gate", "reqps",
              {"{{reason}}": "sum by (reason) (rate(tapline_requests_refused_total@[5m]))"}),
        Panel("Requests", "By status", "reqps",
              {"{{status}}": "sum by (status) (rate(tapline_requests_total@[5m]))"}),
        Panel("Memory", "Resident", "bytes", {"{{instance}}": "process_resident_memory_bytes@"}),
        Panel("CPU", "Cores in use", "none", {"{{instance}}": "rate(process_cpu_seconds_total@[5m])"}),
    ],
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana loads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        panels.append({"type": "row", "title": row, "gridPos": _place(0, y, COLUMNS, 1)})
        x, y = 0, y + 1
        for member in members:
            height = 4 if member.kind == "stat" else 8
            if x + member.width > COLUMNS:
                x, y = 0, y + height
            panels.append(_panel(member) | {"gridPos": _place(x, y, member.width, height)})
            x += member.width
        y += height
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "tapline", "title": "tapline", "tags": ["tapline"], "schemaVersion": 39, "version": 1, "editable": False,
        "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "timezone": "utc",
        "templating": {"list": [_instances()]}, "panels": panels,
    }  # fmt: skip


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number), "legendFormat": legend or "__auto", "datasource": DATASOURCE,
            "expr": query.replace("@", WHICH).replace("[5m]", "[$__rate_interval]"),
        }
        for number, (legend, query) in enumerate(panel.queries.items())
    ]  # fmt: skip
    return {
        "type": panel.kind, "title": panel.title, "description": panel.description, "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []}, "targets": targets,
    }  # fmt: skip


def _instances() -> dict[str, Any]:
    return {
        "name": "instance", "label": "service", "type": "query", "datasource": DATASOURCE, "multi": True,
        "includeAll": True, "allValue": ".+", "current": {"text": "All", "value": "$__all"}, "refresh": 2,
        "query": {"query": "label_values(tapline_queue_flows, instance)", "refId": "instances"},
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
