"""Verdicts from logits: calibration, order, the unknown rule."""

import numpy as np
import pytest

from tapline.models.checkpoint import Calibration, Checkpoint, Mm4flowNetwork, Unknown
from tapline.models.verdict import probabilities, verdicts

CHECKPOINT = Checkpoint(
    "mm4flow", "m", "1", Mm4flowNetwork(8, 1, 2, 8, 3), ["a", "b", "c"],
    calibration=Calibration(2.0), unknown=Unknown(0.5),
)  # fmt: skip
LOGITS = np.array([[4.0, 0.0, 0.0], [0.0, 0.2, 0.1]], np.float32)


def test_temperature_scales_before_softmax():
    e = np.exp(2.0)
    np.testing.assert_allclose(probabilities(LOGITS, CHECKPOINT)[0], [e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    large = np.array([[3e4, 0, 0]], np.float32)
    np.testing.assert_allclose(probabilities(large, CHECKPOINT), [[1, 0, 0]])


def test_best_first_and_unknown_below_the_threshold():
    sure, unsure = verdicts(LOGITS, CHECKPOINT, with_scores=True)
    assert (sure.label, sure.unknown, sure.model, sure.version) == ("a", False, "m", "1")
    assert sure.confidence == pytest.approx(0.786986, abs=1e-6)
    assert [other.label for other in unsure.alternatives] == ["c", "a"]
    assert (unsure.label, unsure.unknown) == ("b", True)
    assert unsure.scores == pytest.approx({"a": 0.0, "b": 0.2, "c": 0.1})
