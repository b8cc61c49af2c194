"""The bag of values: what it reads of a trace, how its weights are fitted, and that every engine computes the same."""

import msgspec
import numpy as np
import pytest
import torch

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.tracegram import Bag, TraceNetwork
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.training.traces.bag import fit_bag
from tapline.training.traces.features import TraceFeatures
from tapline.training.traces.trace_config import BagTraining
from tests.conftest import make_trace_checkpoint

pytestmark = pytest.mark.whole

FIELDS = ("transport", "tcp_flags_orig")
TRANSPORTS = 6
"""Values of the first field: those of the second are behind them."""


def network(classes=3):
    return TracegramNetwork(n_class=classes, encoder="context", context=FIELDS, bag=True)


def trace(*flows):
    times = np.arange(len(flows), dtype=np.int64)
    return TraceFeatures(np.zeros((1, len(flows), 0), np.float32), times, times, np.array(flows, np.uint8))


def fitted(traces, truth, classes=3, **how):
    weights = np.full(len(traces), 1 / len(traces))
    return fit_bag(network(classes), traces, np.array(truth), weights, BagTraining(**how), 0)


@torch.no_grad()
def said(bag, *traces):
    return [int(bag(torch.from_numpy(each.context)[None], torch.tensor([len(each)])).argmax()) for each in traces]


def test_a_value_counts_once_however_often_it_occurs():
    context = torch.tensor([[[1, 9], [1, 9], [1, 9], [2, 9], [5, 5]], [[0, 0]] * 5], dtype=torch.uint8)
    found = Bag(network()).occurrences(context, torch.tensor([4, 5]))
    wanted = torch.zeros(2, found.shape[1])  # the flow behind the first trace's four does not count, nor what is absent
    wanted[0, [1, 2, TRANSPORTS + 9]] = 1
    torch.testing.assert_close(found, torch.nn.functional.normalize(wanted))


def test_classes_are_told_by_what_occurs_in_whatever_order():
    traces = [trace((1, 5), (1, 6)), trace((2, 5), (2, 6)), trace((3, 5), (3, 6))] * 3
    bag = fitted(traces, [0, 1, 2] * 3)
    assert said(bag, trace((1, 6), (1, 5)), trace((2, 9)), trace((3, 0), (3, 6))) == [0, 1, 2]


def test_a_class_without_traces_is_never_the_likeliest():
    traces = [trace((1, 5)), trace((3, 5))] * 2
    assert said(fitted(traces, [0, 2] * 2), *traces, trace((4, 9))) in ([0, 2, 0, 2, 0], [0, 2, 0, 2, 2])
    assert said(fitted(traces, [0, 1] * 2, classes=2), *traces) == [0, 1, 0, 1]


def test_parts_tell_how_little_a_few_flows_say():
    """A trace may begin like those of the other class; without parts its beginning is one of these for sure."""
    traces = [trace(*[(1, 5)] * 10), trace(*[(1, 5)] * 9, (2, 6))] * 4
    first = torch.tensor([[[1, 5]]], dtype=torch.uint8)

    def sure(share):
        bag = fitted(traces, [0, 1] * 4, classes=2, part=1.0, parts_share=share, scale=1.0)
        with torch.no_grad():
            return float(bag(first, torch.tensor([1])).softmax(dim=1)[0, 0])

    assert sure(0.5) < 0.75 < 0.95 < sure(0.0)


@torch.no_grad()
def test_evidence_is_shared_by_the_flows_that_have_a_value():
    bag = Bag(network())
    bag.linear.weight.zero_()
    bag.linear.weight[1, [1, 2, TRANSPORTS + 9]] = torch.tensor([6.0, 3.0, -3.0])
    context = torch.tensor([[[1, 0], [1, 0], [2, 0], [0, 9], [1, 0]]], dtype=torch.uint8)
    of_four = bag.evidence(context, torch.tensor([4]), torch.tensor([1]))
    torch.testing.assert_close(of_four, torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]) / 3)  # 6 of two flows, 3 of one
    for_another = bag.evidence(context, torch.tensor([5]), torch.tensor([0]))
    torch.testing.assert_close(
        for_another, torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])
    )  # against the mean of all classes
    nothing = bag.evidence(torch.zeros_like(context), torch.tensor([5]), torch.tensor([1]))
    assert not nothing.any()


@torch.no_grad()
def test_importance_is_attention_where_the_bag_says_nothing():
    torch.manual_seed(0)
    trace_network = TraceNetwork(network()).eval()
    trace_network.bag.linear.weight.zero_()
    empty, times = torch.zeros(1, 3, 0), torch.zeros(1, 3, 2)
    context = torch.tensor([[[1, 5], [2, 6], [3, 7]]], dtype=torch.uint8)
    output = trace_network(empty, times, torch.tensor([3]), context)
    torch.testing.assert_close(output.importance, output.attention.mean(dim=1))
    trace_network.bag.linear.weight[int(output.logits.argmax()), 2] = 5.0  # the second flow's transport
    output = trace_network(empty, times, torch.tensor([3]), context)
    assert output.importance[0, 1] > 0.5
    torch.testing.assert_close(output.importance.sum(), torch.tensor(1.0))


def test_every_engine_computes_the_same_whatever_stands_beside(tmp_path):
    directory = make_trace_checkpoint(tmp_path / "random-context" / "1", "context")
    engines = [load_trace_engine(name, directory) for name in ("onnx", "torch")]
    fields, rng = engines[0].checkpoint.network.context, np.random.default_rng(0)
    inputs = [
        TraceInput(np.zeros((count, 0), np.float32), *np.zeros((2, count), np.int64), context)
        for count in (1, 7, 3)
        for context in [rng.integers(0, 3, (count, len(fields)), np.uint8)]
    ]
    scores = [engine.score(inputs) for engine in engines]
    together = [each.logits for each in scores]
    for one, other in zip(scores[0].importance, scores[1].importance, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    alone = np.concatenate([engines[0].score([each]).logits for each in inputs])
    np.testing.assert_allclose(together[0], together[1], atol=1e-3)
    np.testing.assert_allclose(together[0], alone, atol=1e-4)
    bare = msgspec.structs.replace(engines[0].checkpoint.network, bag=False)
    assert bare.least_weights < engines[0].checkpoint.network.least_weights


def test_a_bag_of_no_field_is_refused():
    with pytest.raises(ValueError, match="a bag of values of the context, and no field of it"):
        TracegramNetwork(n_class=2, bag=True)
