"""Batches on lanes come out in order, so many under way as there are lanes; what fails fails after what came before."""

import threading

import pytest

from tapline.service.python.lanes import ThreadLane, in_order
from tapline.service.sources.capture import CaptureError
from tests.conftest import make_flows


class Said:
    """A lane that says the batches' own names, and notes what it was asked when."""

    def __init__(self, notes):
        self.notes = notes
        self.started = []

    def start(self, flows):
        self.notes.append(("start", flows[0]))
        self.started.append(flows)

    def outcomes(self):
        flows = self.started.pop(0)
        self.notes.append(("outcomes", flows[0]))
        return [flow.upper() for flow in flows]


def test_batches_come_in_order_and_the_next_ones_are_begun_before():
    notes = []
    lanes = [Said(notes), Said(notes)]
    found = list(in_order(([name] for name in "abcd"), lanes))
    assert found == [([name], [name.upper()]) for name in "abcd"]
    assert notes == [
        ("start", "a"), ("start", "b"), ("outcomes", "a"), ("start", "c"), ("outcomes", "b"), ("start", "d"),
        ("outcomes", "c"), ("outcomes", "d"),
    ]  # fmt: skip


def test_what_was_read_before_an_error_comes_before_it():
    def batches():
        yield ["a"]
        raise CaptureError("cut")

    results = in_order(batches(), [Said([]), Said([])])
    assert next(results) == (["a"], ["A"])
    with pytest.raises(CaptureError, match="cut"):
        next(results)


class Slow:
    """Classifies when it is let."""

    def __init__(self):
        self.may = threading.Event()

    def classify_each(self, flows):
        assert self.may.wait(30)
        if flows[0].uid == "bad":
            raise RuntimeError("broken")
        return [None] * len(flows)


def test_thread_computes_while_others_go_on():
    classifier = Slow()
    lane = ThreadLane(classifier)
    flows = make_flows(2)
    lane.start(flows[:1])
    flows[1].uid = "bad"
    lane.start(flows[1:])
    classifier.may.set()
    assert lane.outcomes() == [None]
    with pytest.raises(RuntimeError, match="broken"):
        lane.outcomes()
    lane.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "classifying"]
