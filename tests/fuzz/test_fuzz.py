"""Each target for a few seconds; `make fuzz SECONDS=...` runs them for longer."""

import pytest

from tests.fuzz import runner

pytestmark = pytest.mark.whole

SECONDS = 6


@pytest.mark.parametrize("target", runner.targets())
def test_target(target):
    tally = runner.run(target, SECONDS, first_seed=1)
    assert tally.cases >= 1


def test_a_fault_and_a_hang_are_found(monkeypatch):
    from tests.fuzz import frames

    def broken(random):
        raise KeyError("fault")

    def hangs(random):
        while True:
            pass

    monkeypatch.setattr(frames, "case", broken)
    with pytest.raises(runner.FaultError, match="frames, seed 7: KeyError"):
        runner.run("frames", 0, 7)
    monkeypatch.setattr(runner, "CASE_SECONDS", 1)
    monkeypatch.setattr(frames, "case", hangs)
    with pytest.raises(runner.FaultError, match="HangError"):
        runner.run("frames", 0, 7)
