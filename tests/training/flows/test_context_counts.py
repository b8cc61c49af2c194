"""The context of a training set: which classes which transports and ports were seen with, and what the loss bars."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tapline.models.context import FlowContext, PortPrior
from tapline.models.flow import Flow
from tapline.training.data.batches import TrainingSet, swap
from tapline.training.data.parquet import Sample
from tapline.training.data.store import store
from tapline.training.flows import context_counts
from tapline.training.flows.context_counts import allowed_classes, learn_context
from tapline.training.flows.finetune import barred_cross_entropy, finetune_stage
from tapline.training.loop.config import TrainingConfig, network_sizes
from tapline.training.loop.new_networks import new_model

LABELS, BACKGROUND = 3, 3
SEEN = [  # transport, responder port, class, capture
    ("udp", 53, 0, 0),
    ("udp", 53, 0, 0),
    ("udp", 53, 0, 1),
    ("udp", 5353, 0, 1),
    ("tcp", 53, 0, 2),
    ("tcp", 443, 1, 2),
    ("tcp", 443, BACKGROUND, 3),
    ("132", 36412, 2, 4),
    ("icmp", 0, 2, 4),
    ("icmpv6", 0, 1, 4),
]


def flow(transport, port):
    ends = ("2001:db8::1", "2001:db8::2") if transport == "icmpv6" else ("192.0.2.1", "192.0.2.2")
    proto = transport.removesuffix("v6")
    return Flow("", 0, 0, ends[0], 40_000, ends[1], port, proto, 1, 0, [9], b"some text", b"")


def training_set(stored, tmp_path):
    flows = [flow(transport, port) for transport, port, _, _ in SEEN]
    if stored:  # a place other than the first, as where a fold takes some of the flows
        samples = [Sample("c", "x", None, flow("47", 0)), *(Sample("c", "x", None, each) for each in flows)]
        flows = store(samples, tmp_path).take(np.arange(1, len(samples))).flows
    truth, captures = (np.array([row[place] for row in SEEN]) for place in (2, 3))
    return TrainingSet(flows, truth, np.full(len(SEEN), 1 / len(SEEN)), captures.astype(np.int32), LABELS)


@pytest.mark.parametrize("stored", [False, True])
def test_a_context_counts_captures(stored, tmp_path):
    context = learn_context(training_set(stored, tmp_path), 0.5)
    assert context == FlowContext(
        {"udp": [0], "tcp": [0, 1, BACKGROUND], "132": [2], "icmp": [2], "58": [1]},
        PortPrior(
            {
                "udp": {53: {0: 2}, 5353: {0: 1}},
                "tcp": {53: {0: 1}, 443: {1: 1, BACKGROUND: 1}},
                "132": {36412: {2: 1}},
            },
            weight=0.5,
        ),
    )
    assert learn_context(training_set(stored, tmp_path), 0.0).ports is None


@pytest.mark.parametrize(("bound", "value"), [("MAX_HELD", 1), ("MAX_CELLS", 7 * (LABELS + 2))])
def test_the_ports_that_most_captures_hold_are_kept(bound, value, monkeypatch, tmp_path):
    monkeypatch.setattr(context_counts, bound, value)  # of cells: six transports, and one port
    assert learn_context(training_set(True, tmp_path), 0.5).ports.holders == {"udp": {53: {0: 2}}}


def test_other_ports_change_nothing_else(tmp_path):
    flows = training_set(True, tmp_path).flows
    changed = flows.take(np.array([1, 4])).with_ports(np.array([[1, 2], [3, 4]], np.uint16))
    assert [(each.orig_p, each.resp_p, each.proto) for each in changed] == [(1, 2, "udp"), (3, 4, "tcp")]
    assert changed[0].orig_bytes == b"some text"
    assert flows[1].resp_p == 53


@pytest.mark.parametrize("stored", [False, True])
def test_background_is_allowed_everywhere(stored, tmp_path):
    data = training_set(stored, tmp_path)
    allowed, transport = allowed_classes(data, LABELS + 1)
    of_flows = allowed[transport]
    assert of_flows[0].tolist() == [True, False, False, True]
    assert of_flows[4].tolist() == [True, True, False, True]
    assert of_flows[8].tolist() == [False, False, True, True]
    assert of_flows[9].tolist() == [False, True, False, True]


def test_the_loss_is_the_cross_entropy_where_nothing_is_barred():
    torch.manual_seed(0)
    logits, truth = torch.randn(8, 5), torch.arange(8) % 5
    loss = barred_cross_entropy(logits, truth, torch.ones(8, 5, dtype=torch.bool), 0.1)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, truth, label_smoothing=0.1, reduction="none"))


def test_the_loss_is_that_of_the_classes_that_are_allowed():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, requires_grad=True)
    truth, allowed = torch.tensor([0, 3, 0, 3]), torch.tensor([True, False, False, True, False]).expand(4, 5)
    loss = barred_cross_entropy(logits, truth, allowed, 0.1)
    of_two = functional.cross_entropy(logits[:, [0, 3]], truth // 3, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(loss, of_two)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, [1, 2, 4]].any()


def test_training_bars_what_serving_bars(tmp_path):
    data = training_set(True, tmp_path)
    config = TrainingConfig(32, 2, 1, 64, batch_flows=9, draws=64, label_smoothing=0.0)
    model = new_model(network_sizes(config, LABELS + 1), 0)
    with torch.no_grad():
        model.get_parameter("classifier.0.weight").zero_()
        model.get_parameter("classifier.0.bias").zero_()
    work = next(iter(finetune_stage("", model, data, config).works(0)))
    rows = np.arange(work.flows)
    with torch.inference_mode():
        total = float(work.loss(rows))
    assert np.log(2) <= total <= np.log(3) + 1e-6  # logits are equal: the loss counts the classes that are allowed
    assert swap(data.flows[0]).proto == "udp"
