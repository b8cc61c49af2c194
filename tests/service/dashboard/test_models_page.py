import pytest

from tapline.models.checkpoint import read_checkpoint, read_trace_checkpoint
from tapline.service.dashboard.models_page import measured
from tapline.service.inference.repository import shipped_checkpoint


@pytest.mark.parametrize("name", ["flow-protocols", "intrusion", "iot-devices"])
def test_what_ships_says_how_it_was_measured(name):
    read = read_checkpoint if name == "flow-protocols" else read_trace_checkpoint
    assert measured(read(shipped_checkpoint(name), needs=()).metrics).startswith("Macro-F1 0.")


@pytest.mark.parametrize(
    "metrics", [{}, {"cross_validation": None}, {"cross_validation": {"figures": {"macro_f1": "x"}}},
                {"cross_validation": {"main": "a", "variants": []}}, {"cross_validation": {"variants": [3]}}],
)  # fmt: skip
def test_a_foreign_checkpoint_may_hold_anything(metrics):
    assert measured(metrics) == "Its checkpoint holds no cross-validation."
