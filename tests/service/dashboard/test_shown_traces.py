"""A trace's row says of a host what the terminal says of it."""

import pytest

from tapline.models.verdict import Verdict
from tapline.service.command.trace_table import recent_traces
from tapline.service.dashboard.frame import html
from tapline.service.dashboard.shown_traces import TRACE_COLUMNS, trace_rows
from tapline.service.history.past import PastTrace
from tapline.service.history.rows import trace_record
from tapline.service.traces.trace_verdict import TraceVerdict


@pytest.mark.parametrize(
    ("suspicion", "suspicious", "label", "shown", "printed"),
    [
        (0.0002, False, "not suspicious", "100 %", "1.00"),
        (0.25, False, "not suspicious", "75.0%", "0.75"),
        (0.97, True, "suspicious 97.0%", "62.0%", "0.62"),
        (None, None, "trickbot", "62.0%", "0.62"),
    ],
)
def test_the_confidence_is_that_in_what_the_label_says(suspicion, suspicious, label, shown, printed):
    verdict = Verdict("trickbot", "trickbot", 0.62, False, [], "intrusion", "1")
    trace = TraceVerdict("live", "originator", "10.0.0.5", 0, 60_000_000, 7, 0, verdict, [], suspicion, suspicious)
    record = trace_record(1, trace)
    past = PastTrace(number=3, **{name: getattr(record, name) for name in record.__struct_fields__})
    [row] = trace_rows([past])
    cells = dict(zip(TRACE_COLUMNS, map(html, row), strict=True))
    assert label in cells["label"]
    assert cells["confidence"] == shown
    assert printed in "".join(cell for column in recent_traces([trace], 80).columns for cell in map(str, column.cells))
