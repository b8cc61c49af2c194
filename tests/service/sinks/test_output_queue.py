"""What is dropped first, and in which order what is left goes out."""

import itertools

import pytest

from tapline.service.sinks.output_queue import OutputQueue, Pending, Record
from tests.service.sinks.records import pending

KINDS = ["flows", "traces", "alerts"]


def ids(batch):
    return [(each.kind, each.record.line) for each in batch]


def named(*texts):
    """`flows 1` to a record."""
    return [pending(*(part if part.isalpha() else int(part) for part in text.split())) for text in texts]


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["flows 1", "flows 2", "traces 3", "traces 4", "alerts 5"]))
)
def test_flows_go_before_traces_before_alerts_the_oldest_first(order):
    records = named(*order)
    queue = OutputQueue(len(records), 1 << 20)
    assert [queue.put(each) for each in records] == [[]] * 5
    dropped = [each for number in range(6, 11) for each in queue.put(pending("alerts", number))]
    of = {kind: [each for each in records if each.kind == kind] for kind in KINDS}
    assert ids(dropped) == ids([*of["flows"], *of["traces"], *of["alerts"]])
    assert [each.kind for each in queue.take(100)] == ["alerts"] * 5


def test_what_ranks_lowest_of_all_is_not_taken():
    queue = OutputQueue(2, 1 << 20)
    for each in named("alerts 1", "traces 2"):
        assert queue.put(each) == []
    late = pending("flows", 3)
    assert queue.put(late) == [late]
    assert len(queue) == 2


def test_bytes_are_bounded_too():
    queue = OutputQueue(1000, 10_000)
    sizes = [Pending("flows", 3000, lambda: b"{}") for _ in range(5)]
    assert [len(queue.put(each)) for each in sizes] == [0, 0, 0, 1, 1]
    assert queue.take(10) == sizes[2:]


def test_alerts_are_sent_first_and_what_comes_back_goes_before_what_came_since():
    queue = OutputQueue(100, 1 << 20)
    for each in named("flows 1", "alerts 2", "traces 3", "flows 4"):
        queue.put(each)
    first = queue.take(3)
    assert ids(first) == ids(named("alerts 2", "traces 3", "flows 1"))
    queue.put(pending("traces", 5))
    assert queue.put_back(first) == []
    assert ids(queue.take(100)) == ids(named("alerts 2", "traces 3", "traces 5", "flows 1", "flows 4"))


def test_what_comes_back_to_a_full_queue_is_the_oldest():
    queue = OutputQueue(2, 1 << 20)
    for each in named("flows 1", "flows 2"):
        queue.put(each)
    taken = queue.take(2)
    for each in named("flows 3", "flows 4"):
        queue.put(each)
    assert ids(queue.put_back(taken)) == ids(named("flows 1", "flows 2"))


def test_a_record_is_made_once_and_lets_go_of_what_it_was_made_of():
    made = []
    each = Pending("flows", 10, lambda: made.append(1) or b"{}")
    assert each.record is each.record
    assert (made, each._make) == ([1], None)
    assert each.record == Record("flows", b"{}")


def test_one_record_always_fits_a_batch():
    queue = OutputQueue(10, 1 << 20)
    queue.put(Pending("flows", 5000, lambda: b"{}"))
    assert len(queue.take(10, 100)) == 1
