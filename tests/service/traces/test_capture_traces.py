"""The traces of a capture in bounded memory: what there is no room for is given before the capture ends."""

import io
import json

import msgspec
import numpy as np

from tapline.models.trace import TraceSettings
from tapline.service.results.records import SummaryBuilder
from tapline.service.results.writers import JsonWriter
from tapline.service.traces import capture_traces
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceFlow
from tapline.service.traces.trace_verdict import trace_flow as kept_flow
from tapline.service.traces.windows import WindowBounds
from tests.service.traces.fakes import WIDTH, NumpyTraceEngine, read_by, trace_checkpoint, trace_flow


def collect(flows):
    engine = NumpyTraceEngine(trace_checkpoint(trace=TraceSettings(window_seconds=10)))
    traces = CaptureTraces([TraceScorer(engine)], "big.pcap")
    on_the_way = []
    for flow in flows:
        traces.add(flow, read_by(engine.checkpoint, values=np.ones(WIDTH)))
        on_the_way += traces.ready()
    traces.finish()
    at_the_end = []
    while batch := traces.ready():
        at_the_end += batch
    return on_the_way, at_the_end, traces


def test_a_capture_of_any_size_keeps_its_bound_and_its_flows(monkeypatch):
    monkeypatch.setattr(capture_traces, "_BOUNDS", WindowBounds(max_subjects=50, max_open_flows=50, max_jobs=1000))
    flows = [trace_flow(n, n / 2, f"10.0.0.{n % 4}") for n in range(2000)]
    on_the_way, at_the_end, traces = collect(flows)
    assert sum(trace.flows for trace in on_the_way + at_the_end) == 2000
    assert len(on_the_way) > 10 * len(at_the_end)
    assert traces.models[0].counts.late == 0
    assert traces.models[0].counts.closed_evicted == len(on_the_way)


def test_top_flows_have_the_names_of_their_servers():
    """Also in a state that was written before flows had any."""
    _, (found,), _ = collect([trace_flow(0, 0), trace_flow(1, 1, server_name="a.example"), trace_flow(2, 2)])
    assert {flow.uid: flow.server_name for flow in found.top_flows} == {"0": "", "1": "a.example", "2": ""}
    kept = kept_flow(trace_flow(1, 1, server_name="a.example"), None, bytes(4 * WIDTH))
    *before, name = msgspec.to_builtins(kept, builtin_types=(bytes,))
    assert name == "a.example"
    assert msgspec.convert(before, TraceFlow) == msgspec.structs.replace(kept, server_name="")


def test_heads_are_forgotten_once_they_are_embedded():
    flows = [trace_flow(n, n) for n in range(3)]
    collect(flows)
    assert all((flow.heads, flow.heads_kind) == ([], "none") for flow in flows)


def test_json_holds_many_traces_without_holding_them_in_memory(monkeypatch):
    monkeypatch.setattr("tapline.service.results.spool._MEMORY_BYTES", 1000)
    _, found, traces = collect([trace_flow(n, 20 * n) for n in range(200)])
    file = io.StringIO()
    writer = JsonWriter(file)
    builder = SummaryBuilder(trace_checkpoint(), traces.checkpoints)
    for trace in found:
        writer.add_trace(trace)
        builder.add_trace(trace)
    assert file.getvalue() == ""
    builder.account_traces(traces.accounts())
    writer.finish(builder.finish([]))
    body = json.loads(file.getvalue())
    assert len(body["traces"]) == body["summary"]["traces"][0]["traces"] == 200
    assert body["flows"] == []
    assert [trace["start_us"] for trace in body["traces"]] == sorted(trace["start_us"] for trace in body["traces"])
