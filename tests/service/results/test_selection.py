"""What is shown where not all can be: nothing rare, unknown or odd is hidden behind the first rows."""

from tapline.service.results.selection import MAX_FURTHER_ROWS, ODD_ROWS, RARE_ROWS, FlowRow, FlowSelection
from tests.service.results.results import make_flow, make_verdict


def selected(rows, limit=5, sort="time"):
    selection = FlowSelection(limit, sort)
    for number, (verdict, fields) in enumerate(rows):
        selection.add(FlowRow(make_flow(number, **fields), verdict))
    first = selection.first()
    return first, selection.further(first), selection.left_out


def test_rare_labels_unknown_flows_and_unexpected_ports_are_seen_behind_many_others():
    odd = make_verdict("TLS", port_label="SSH", unexpected_port=True)
    rows = [(make_verdict(), {})] * 100 + [(make_verdict("SSH"), {})] * 40 + [(make_verdict(unknown=True), {})] * 15
    first, further, left_out = selected([*rows, (odd, {}), *rows])
    assert [row.verdict.label for row in first] == ["TLS"] * 5
    labels = [row.verdict.label for row in further]
    assert (labels.count("SSH"), labels.count("unknown")) == (RARE_ROWS, ODD_ROWS)
    assert [row.verdict.unexpected_port is True for row in further].count(True) == 1
    assert len(further) == len({row.flow.uid for row in further})
    assert left_out == 2 * len(rows) + 1 - 5
    assert [row.flow.start_us for row in further] == sorted(row.flow.start_us for row in further)


def test_what_is_further_is_bounded_and_the_rarest_come():
    rows = [(make_verdict(f"L{number}"), {}) for number in range(100) for _ in range(number + 1)]
    _, further, _ = selected([(make_verdict(), {})] * 10 + rows)
    assert len(further) == MAX_FURTHER_ROWS
    assert {row.verdict.label for row in further} == {f"L{number}" for number in range(16)} - {"L15"} | {"L15"}


def test_nothing_is_further_where_all_are_shown():
    assert selected([(make_verdict(unknown=True), {})] * 3)[1:] == ([], 0)
    assert selected([(make_verdict(unknown=True), {})] * 30, limit=0)[1:] == ([], 0)


def test_orders():
    rows = [
        (make_verdict("b", 0.9), {"orig_ip_bytes": 1}),
        (make_verdict("A", 0.7), {"orig_ip_bytes": 9, "up": 7}),
        (make_verdict("c", 0.8), {"orig_ip_bytes": 5, "down": 30}),
    ]
    orders = {
        sort: "".join(row.verdict.label for row in selected(rows, sort=sort)[0])
        for sort in ("time", "bytes", "packets", "confidence", "label")
    }
    assert orders == {"time": "bAc", "bytes": "Acb", "packets": "cAb", "confidence": "Acb", "label": "Abc"}
