"""Tracegram's networks against what the published modules compute, and what padding and batches must not change."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.linear_transformer import LinearHeads, LocalHeads
from tapline.models.packet_tokens import CLASS, END, PADDING
from tapline.models.tracegram import Tracegram
from tests.paths import DATA

pytestmark = pytest.mark.whole

TRACEGRAM = DATA / "tracegram"
TOLERANCE = 1e-4


def assert_close(got, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def padded(rows, length=None):
    length = length or max(map(len, rows))
    return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])


@pytest.fixture(scope="module")
def published():
    """The published model, its token sequences and what they must give."""
    reference = json.loads((TRACEGRAM / "tracegram_flows.json").read_text())
    config, trace = reference["encoder_config"], reference["trace_config"]
    network = TracegramNetwork(
        n_class=trace["num_classes"],
        feature_size=trace["feature_size"],
        queries=trace["queries"],
        time_encoding=False,
        decoder_ff=2048,
        **{name: value for name, value in config.items() if name in TracegramNetwork.__struct_fields__},
    )
    model = Tracegram(network, reference["flow_classes"]).eval()
    weights = load_file(TRACEGRAM / "tracegram_weights.safetensors")
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    )  # strict: every published name, no other
    return model, reference["flows"], load_file(TRACEGRAM / "tracegram_expected.safetensors")


@torch.inference_mode()
def test_flow_features_and_losses_are_the_published_ones(published):
    model, rows, expected = published
    tokens = padded(rows)  # two of them are half padding, which the published code was never given
    output = model.encoder(tokens)
    assert_close(output.features, expected["flow_features"])
    assert_close(output.logits, expected["flow_class_logits"])
    for index in range(len(rows)):
        losses = model.encoder.next_token_losses(tokens[index : index + 1], output.states[index : index + 1])
        assert len(losses) == len(rows[index]) - 1
        assert_close(losses.mean(), expected["next_token_loss"][index, 0])


@torch.inference_mode()
def test_traces_are_the_published_ones(published):
    model, rows, expected = published
    features = model.encoder(padded(rows)).features
    output = model.trace(features[None], torch.zeros(1, len(rows), 2), torch.tensor([len(rows)]))
    assert_close(output.logits, expected["trace_logits"])
    assert_close(output.matrix, expected["trace_matrix"])
    assert_close(output.attention[0], expected["attention"])
    assert_close(output.importance.sum(1), torch.ones(1))
    assert expected["attention"].std(dim=1).max() > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("length", [2, 63, 64, 65, 129, 255, 256, 257, 511, 512])
def test_a_feature_does_not_depend_on_padding_or_batch(published, length):
    model, rows, _ = published
    flow = [CLASS, *rows[0][1 : length - 1], END]
    alone = model.encoder(torch.tensor([flow])).features[0]
    assert alone.std() > 0.1
    for longest in (length + 1, 512, 700):
        assert_close(model.encoder(padded([flow], longest)).features[0], alone, 1e-5)
    for longest in (512, 700):
        assert_close(model.encoder(padded([flow, rows[1], rows[2]], longest)).features[0], alone, 1e-5)


@torch.inference_mode()
def test_a_trace_does_not_depend_on_the_traces_beside_it(published):
    model, rows, _ = published
    features = model.encoder(padded(rows)).features
    counts = torch.tensor([7, 1, 4])
    together = torch.zeros(3, 9, features.shape[1])
    for index, count in enumerate(counts):
        together[index, :count] = features[:count]
    together[1, 1:] = 1e3  # padding may be anything
    output = model.trace(together, torch.zeros(3, 9, 2), counts)
    for index, count in enumerate(counts):
        alone = model.trace(features[None, :count], torch.zeros(1, count, 2), counts[index : index + 1])
        assert_close(output.logits[index], alone.logits[0], 1e-5)
        assert_close(output.importance[index, :count], alone.importance[0], 1e-5)
        assert not output.importance[index, count:].any()


def states(length):
    torch.manual_seed(length)
    return [torch.randn(2, 3, length, 4) for _ in range(3)]


@pytest.mark.parametrize("length", [1, 5, 10, 11, 23])
def test_local_heads_see_their_window_and_the_one_before(length):
    query, key, value = states(length)
    position = torch.arange(length)
    begin = (position // 5 - 1) * 5
    seen = (position <= position[:, None]) & (position >= begin[:, None])
    scores = (query @ key.transpose(-1, -2) / 2).masked_fill(~seen, float("-inf"))
    assert_close(LocalHeads(5)(query, key, value), scores.softmax(-1) @ value, 1e-5)


@pytest.mark.parametrize("length", [1, 4, 5, 8, 13])
def test_linear_heads_see_the_buckets_before_their_own(length):
    query, key, value = states(length)
    found = LinearHeads(4)(query, key, value)
    query, key = query.softmax(-1) / 2, key.exp()
    for place in range(length):
        seen = place // 4 * 4
        weights = (query[:, :, place, None] * key[:, :, :seen]).sum(-1, keepdim=True)
        expected = (weights * value[:, :, :seen]).sum(2) / weights.sum(2).clamp(min=1e-3)
        assert_close(found[:, :, place], expected, 1e-5)


@torch.inference_mode()
def test_time_changes_a_trace_only_where_it_is_encoded(published):
    torch.manual_seed(0)
    features, counts = torch.randn(1, 4, 64), torch.tensor([4])
    for encoded in (True, False):
        model = Tracegram(TracegramNetwork(n_class=3, time_encoding=encoded)).eval().trace
        still, moved = (
            model(features, times, counts).attention for times in (torch.zeros(1, 4, 2), torch.ones(1, 4, 2))
        )
        assert torch.equal(still, moved) is not encoded
