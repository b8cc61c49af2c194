"""Draws, cuts and batches of flows: what early verdicts see, and no special token ever changed."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from tapline.models.encode import FIRST_TOKEN, MASK, Mm4flowFeatures, encode
from tapline.models.flow import Flow
from tapline.training.data.batches import (
    by_length,
    cut_flows,
    disturb_tokens,
    draw_weights,
    one_way,
    plain_batches,
    prefix,
    swap,
    training_batches,
)
from tapline.training.loop.config import Augmentation
from tests.conftest import make_flows

FLOW = Flow("U", 0, 0, "::1", 1, "::2", 2, "tcp", 2, 2, [4, -3, 2, -5], b"abcdef", b"ghijklmn")


def parts(flow):
    return flow.payload_lengths, flow.up, flow.down, flow.orig_bytes, flow.resp_bytes


def test_a_prefix_holds_what_its_packets_carried():
    assert parts(prefix(FLOW, 1)) == ([4], 1, 0, b"abcd", b"")
    assert parts(prefix(FLOW, 3)) == ([4, -3, 2], 2, 1, b"abcdef", b"ghi")
    assert parts(prefix(FLOW, 9)) == parts(FLOW)
    assert prefix(FLOW, 1).complete is False


def test_directions():
    assert parts(one_way(FLOW, forward=False)) == ([-3, -5], 0, 2, b"", b"ghijklmn")
    assert parts(swap(FLOW)) == ([-4, 3, -2, 5], 2, 2, b"ghijklmn", b"abcdef")
    lone = prefix(FLOW, 1)
    assert one_way(lone, forward=False) is lone


def test_classes_and_captures_are_balanced_by_power():
    classes, captures = np.array([4] * 17 + [9]), np.array([0] * 16 + [1, 2])
    equal = draw_weights(classes, captures, 0, 0)
    assert equal.sum() == pytest.approx(1)
    assert [equal[:16].sum(), equal[16], equal[17]] == pytest.approx([0.25, 0.25, 0.5])
    rooted = draw_weights(classes, captures, 1, 0.5)
    assert [rooted[:16].sum(), rooted[16], rooted[17]] == pytest.approx([2 / 3 * 0.8, 2 / 3 * 0.2, 1 / 3])


def test_only_real_tokens_are_disturbed(rng):
    tokens = encode(make_flows(50))
    disturbed = disturb_tokens(tokens, Augmentation(mask_bytes=0.9, random_bytes=0.9, mask_lengths=0.9), rng)
    for before, after in ((tokens.ps_tokens, disturbed.ps_tokens), (tokens.bytes_tokens, disturbed.bytes_tokens)):
        special = before < FIRST_TOKEN
        np.testing.assert_array_equal(after[special], before[special])
        assert ((after >= FIRST_TOKEN) | (after == MASK))[~special].all()
        assert 0.2 < (after != before)[~special].mean() < 0.9


def test_jitter_keeps_the_direction(rng):
    tokens = encode(make_flows(80))
    after = disturb_tokens(tokens, Augmentation(mask_lengths=0, jitter_lengths=0.3), rng).ps_tokens
    real = tokens.ps_tokens >= FIRST_TOKEN
    assert (after != tokens.ps_tokens)[real].any()
    np.testing.assert_array_equal(after[real] % 2, tokens.ps_tokens[real] % 2)


def test_cuts_follow_their_probability(rng):
    flows = make_flows(300)
    assert [parts(flow) for flow in cut_flows(flows, Augmentation(0, 0, 0, 0), rng)] == [parts(flow) for flow in flows]
    cut = cut_flows(flows, Augmentation(prefix=1, no_content=1, one_way=0, swap=0), rng)
    assert all(not flow.orig_bytes and not flow.resp_bytes and flow.payload_lengths for flow in cut)
    assert all(len(a.payload_lengths) < max(2, len(b.payload_lengths)) for a, b in zip(cut, flows, strict=True))


def test_batches_hold_the_draws_with_little_padding(rng):
    flows = make_flows(100)
    weights = np.zeros(100)
    weights[:40] = 1 / 40
    features = Mm4flowFeatures(32, 64)
    rows, real, computed = Counter(), 0, 0
    for batch in training_batches(flows, weights, 1000, 32, features, Augmentation(), rng):
        rows.update(batch.rows.tolist())
        for tokens in (batch.ps_tokens, batch.bytes_tokens):
            real += int((tokens > 0).sum())
            computed += tokens.numel()
    assert rows.total() == 1000
    assert set(rows) == set(range(40))
    assert 1 - real / computed < 0.1


def test_batches_are_cut_where_they_are_padded_least():
    lengths = [[1] * 30, [1], [1] * 30, [1]] * 2
    contents = [b"", b"a" * 200, b"a" * 200, b"", b"", b"a" * 200, b"a" * 200, b""]
    flows = [
        msgspec.structs.replace(FLOW, payload_lengths=lengths[n], orig_bytes=contents[n], resp_bytes=b"")
        for n in range(8)
    ]
    groups = [sorted(group.tolist()) for group in by_length(encode(flows, Mm4flowFeatures()), 2)]
    assert sorted(groups) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_part_of_a_batch_holds_its_rows_padded_as_the_batch():
    flows = [prefix(FLOW, 1), FLOW]
    (batch,) = plain_batches(flows, 2, Mm4flowFeatures())
    place = int(np.flatnonzero(batch.rows == 0)[0])
    part = batch.part(np.array([place]))
    assert part.rows.tolist() == [0]
    assert part.ps_tokens.tolist() == [[2, 13, 3, 0, 0, 0]]
    assert part.bytes_tokens.shape == part.bytes_types.shape == (1, batch.bytes_tokens.shape[1])
    assert part.tokens == 10
    assert batch.tokens == 10 + 6 + 3 + 14
    assert batch.computed == 2 * (6 + 17)


def test_plain_batches_hold_every_flow_once():
    flows = make_flows(70)
    rows = np.concatenate([batch.rows for batch in plain_batches(flows, 16, Mm4flowFeatures())])
    assert sorted(rows.tolist()) == list(range(70))
    assert sorted(len(group) for group in by_length(encode(flows), 32)) == [6, 32, 32]
