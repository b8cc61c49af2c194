"""Both engines give the same scores, whatever a flow is batched with, and compute little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapline.models.checkpoint import ONNX
from tapline.models.encode import TokenBatch, encode
from tapline.service.engines.engine import EngineError
from tapline.service.engines.loading import load_engine
from tapline.service.engines.pieces import MAX_PADDING, MAX_PIECE_FLOWS, MAX_PIECE_TOKENS, pieces
from tests.conftest import make_flows

pytestmark = pytest.mark.whole

ROUNDING = 1e-4
FLOWS = make_flows(200)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def engine(request, checkpoint_dir):
    return load_engine(request.param, checkpoint_dir)


def test_engines_agree(checkpoint_dir):
    batch = encode(FLOWS)
    ours, reference = (load_engine(name, checkpoint_dir).run(batch) for name in ("onnx", "torch"))
    assert np.ptp(reference.logits) > 1  # the comparison is of something
    np.testing.assert_allclose(ours.logits, reference.logits, atol=ROUNDING)
    np.testing.assert_allclose(ours.embeddings, reference.embeddings, atol=ROUNDING)


def test_a_verdict_does_not_depend_on_its_batch(engine):
    together = engine.run(encode(FLOWS)).logits[:60]
    alone = np.concatenate([engine.run(encode([flow])).logits for flow in FLOWS[:60]])
    np.testing.assert_allclose(together, alone, atol=ROUNDING)


@settings(max_examples=20)
@given(st.lists(st.integers(0, len(FLOWS) - 1), min_size=1, max_size=40))
def test_order_and_company_do_not_matter(checkpoint_dir_engine, chosen):
    engine, expected = checkpoint_dir_engine
    found = engine.run(encode([FLOWS[index] for index in chosen])).logits
    np.testing.assert_allclose(found, expected[chosen], atol=ROUNDING)


@pytest.fixture(scope="module")
def checkpoint_dir_engine(checkpoint_dir):
    engine = load_engine("onnx", checkpoint_dir)
    return engine, engine.run(encode(FLOWS)).logits


def test_an_empty_batch(engine):
    assert engine.run(encode([])).logits.shape == (0, 3)


def batch_of(counts):
    ps, content = np.array(counts, np.int64).reshape(-1, 2).T
    offsets = [np.concatenate(([0], np.cumsum(part))) for part in (ps, content)]
    empty = [np.ones(int(part[-1]), np.int32) for part in offsets]
    return TokenBatch(empty[0], offsets[0], empty[1], empty[1], offsets[1])


@given(st.lists(st.tuples(st.integers(3, 256), st.integers(3, 512)), max_size=120))
def test_pieces_hold_every_flow_once_with_little_padding(counts):
    batch = batch_of(counts)
    found = pieces(batch)
    assert sorted(np.concatenate([*found, np.array([], np.int64)]).tolist()) == list(range(len(counts)))
    for rows in found:
        ps, content = batch.ps_counts[rows], batch.bytes_counts[rows]
        computed = len(rows) * (ps.max() + content.max())
        assert 1 - (ps.sum() + content.sum()) / computed <= MAX_PADDING
        assert len(rows) == 1 or computed <= MAX_PIECE_TOKENS
        assert len(rows) <= MAX_PIECE_FLOWS


def test_a_session_keeps_no_copy_of_its_file(checkpoint_dir):
    size = (checkpoint_dir / ONNX).stat().st_size
    session = load_engine("onnx", checkpoint_dir)._session._session
    assert session.get_inputs()
    assert [held for held in vars(session).values() if isinstance(held, bytes) and len(held) >= size] == []


def test_torch_missing_is_explained(checkpoint_dir, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tapline.service.engines.torch_engine", None)
    with pytest.raises(EngineError, match=r"needs .*: install the extra `torch` \(pip install .*\[torch\].*\)"):
        load_engine("torch", checkpoint_dir)
