"""A trace of a malicious kind is suspicious, also where no label is sure; every place that shows a trace says it."""

import asyncio
import csv
import io
import json

import msgspec
import numpy as np
import pytest
from rich.console import Console

from tapline.models.checkpoint import EarlyVerdict, Suspicion, TracegramNetwork, Unknown
from tapline.models.verdict import Verdict
from tapline.service.api import schemas
from tapline.service.command.trace_table import TraceTable, recent_traces
from tapline.service.engines.trace_engine import TraceScores
from tapline.service.results.records import Summary, SummaryBuilder
from tapline.service.results.writers import TraceCsvWriter
from tapline.service.sinks.zeek_sink import trace_verdict_row
from tapline.service.traces.scorer import TraceScorer
from tests.service.command.test_trace_table import trace
from tests.service.traces.fakes import LABELS, WIDTH, NumpyTraceEngine, read_by, trace_checkpoint, trace_flow
from tests.service.traces.test_classifying import job
from tests.service.traces.test_live_traces import BUS, NOW, clock, make_live, play, until, value  # noqa: F401

NETWORK = TracegramNetwork(encoder="tracegram", feature_size=WIDTH, emb_dim=WIDTH, n_class=len(LABELS) + 1)


def suspecting(logits, *, threshold=0.8, early=None):
    """An engine that gives these logits of any trace, the last of background."""
    engine = NumpyTraceEngine(
        trace_checkpoint(
            network=NETWORK, unknown=Unknown(0.5, background=True), suspicion=Suspicion(threshold),
            early=early or EarlyVerdict(0.9, 2),
        )
    )  # fmt: skip
    engine.score = lambda traces: TraceScores(
        np.float32([logits] * len(traces)), [np.full(len(t.features), 1 / len(t.features), np.float32) for t in traces]
    )
    return engine


def scored(logits, **options):
    (found,) = TraceScorer(suspecting(logits, **options)).score([job("a", np.zeros((2, WIDTH)))])
    return found


@pytest.mark.parametrize(
    ("logits", "suspicion", "suspicious", "unknown"),
    [
        ([9, 0, 0, 0], 0.999877, True, False),
        ([2, 2, 2, 0], 0.956835, True, True),  # of none of the labels, but of their kind
        ([0, 0, 0, 3], 0.129951, False, True),
    ],
)
def test_what_background_leaves_is_suspicion(logits, suspicion, suspicious, unknown):
    found = scored(logits)
    assert (found.suspicion, found.suspicious, found.verdict.unknown) == (suspicion, suspicious, unknown)
    assert len(found.top_flows) == 2


def test_the_threshold_itself_is_suspicious():
    exactly = scored([2, 2, 2, 0]).suspicion
    assert scored([2, 2, 2, 0], threshold=exactly).suspicious
    assert not scored([2, 2, 2, 0], threshold=exactly + 1e-6).suspicious


def test_what_is_not_suspicious_has_no_label_however_sure_the_nearest_is():
    found = scored([9, 0, 0, 7.5], threshold=0.9)
    assert found.verdict.confidence > 0.8
    assert not found.suspicious
    assert found.verdict.unknown
    assert not scored([9, 0, 0, 7.5], threshold=0.8).verdict.unknown


def test_a_model_of_other_kinds_tells_nothing():
    (found,) = TraceScorer(NumpyTraceEngine()).score([job("a", np.zeros((2, WIDTH)))])
    assert (found.suspicion, found.suspicious) == (None, None)


def test_a_trace_without_numbers_takes_no_suspicion_from_others():
    engine = suspecting([0, 0, 0, 0])
    whole = engine.score

    def broken(traces):
        scores = whole(traces)
        scores.logits[:] = [[np.nan] * 4, [9, 0, 0, 0], [0, 0, 0, 9]]
        return scores

    engine.score = broken
    found = TraceScorer(engine).score([job(f"s{n}", np.zeros((1, WIDTH))) for n in range(3)])
    assert [trace and trace.suspicious for trace in found] == [None, True, False]


def live(clock, logits, flows=8):  # noqa: F811
    """The verdicts on a window that takes one flow after the other; `logits` by the number of its flows."""
    delivered, engine = [], suspecting([0, 0, 0, 0])
    engine.score = lambda traces: TraceScores(
        np.float32([logits[len(t.features)] for t in traces]), [np.ones(len(t.features), np.float32) for t in traces]
    )
    traces = make_live(engine, delivered)

    async def body():
        for number in range(flows):
            traces.take(BUS, trace_flow(number, NOW + number), read_by(engine.checkpoint))
            await until(lambda: not any(model.windows.jobs for model in traces.models.values()))
            await asyncio.sleep(0.02)
        await traces.finish(BUS)

    play(traces, body)
    return traces, [(t.flows, t.verdict.final, t.suspicious, t.verdict.unknown) for t in delivered]


def test_a_suspicious_window_is_told_early_once_though_no_label_is_sure(clock):  # noqa: F811
    unsure, benign, sure = [2, 2, 2, 0], [0, 0, 0, 9], [9, 0, 0, 0]
    traces, told = live(clock, {2: benign, 4: unsure, 8: unsure})
    assert told == [(4, False, True, True), (8, True, True, True)]
    assert value(traces, "tapline_suspicious_traces_total", stage="early") == 1
    assert value(traces, "tapline_suspicious_traces_total", stage="final") == 1
    _, told = live(clock, {2: unsure, 4: sure, 8: sure})  # the label is news, and then nothing is
    assert told == [(2, False, True, True), (4, False, True, False), (8, True, True, False)]
    _, told = live(clock, {2: sure, 4: unsure, 8: benign})
    assert told == [(2, False, True, False), (8, True, False, True)]


def test_a_table_marks_it_at_any_width():
    bad = trace(suspicion=0.987, suspicious=True)
    fine = trace(subject="10.0.0.5", suspicion=0.2, suspicious=False)
    for width in (60, 80, 160):
        console = Console(file=io.StringIO(), width=width, force_terminal=True)
        table = TraceTable(0)
        table.add(bad)
        table.add(fine)
        table.draw(console, Summary("flows", "1"))
        text = console.file.getvalue()
        assert text.count("suspicious") == 2
        assert text.count("not suspicious") == 1
        assert "\x1b[1;31msuspicious 99%" in text
        console = Console(file=io.StringIO(), width=max(width, 80))
        console.print(recent_traces([bad, fine], width))
        assert console.file.getvalue().count("suspicious 99%") == 1
        assert max(map(len, console.file.getvalue().splitlines())) <= max(width, 80)


def test_formats_have_it():
    rows = io.StringIO()
    writer = TraceCsvWriter(rows)
    for each in (trace(suspicion=0.987, suspicious=True), trace()):
        writer.add_trace(each)
        schemas.Trace.model_validate(json.loads(msgspec.json.encode(each)))
    found = list(csv.DictReader(io.StringIO(rows.getvalue())))
    assert [(row["suspicion"], row["suspicious"]) for row in found] == [("0.987", "True"), ("", "")]
    assert [(row["model"], len(row["top_uids"].split())) for row in found] == [("m", 3)] * 2
    assert json.loads(msgspec.json.encode(trace()))["suspicious"] is None
    row = trace_verdict_row(trace(suspicion=0.987, suspicious=True))
    assert row.values()[-2:] == [0.987, True]


def test_the_summary_counts_them_where_the_model_tells():
    told, silent = suspecting([0, 0, 0, 0]).checkpoint, trace_checkpoint(name="others")
    builder = SummaryBuilder(told, [told, silent])
    for model, suspicious in (("devices", True), ("devices", False), ("devices", True), ("others", None)):
        builder.add_trace(trace(verdict=Verdict("a", 0.9, False, [], model, "1"), suspicious=suspicious))
    assert [(entry.model, entry.traces, entry.suspicious) for entry in builder.finish([]).traces] == [
        ("devices", 3, 2), ("others", 1, None),
    ]  # fmt: skip
