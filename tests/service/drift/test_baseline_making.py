"""A baseline is made of captures by the path that serves, or of what a service remembers; its checkpoint stays what it
was."""

import asyncio

import msgspec
import numpy as np
import pytest

from tapline.models.baseline import MAX_BASELINE_BYTES, read_baseline
from tapline.models.checkpoint import BASELINE, CARD, read_any_checkpoint, read_any_manifest
from tapline.service.drift import baseline_making
from tapline.service.drift.baseline_making import Sample, measure
from tapline.service.drift.counts import Counts, Hour
from tapline.service.drift.drift_state import DRIFT_DIRECTORY, DriftState, ModelHours
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.paths import DATA
from tests.service.command.cli_runner import tapline
from tests.service.drift.test_drift import shipped_copy

CAPTURES = DATA / "captures"
ANDROID = DATA / "captures" / "android.pcap"
SHIPPED = ("flow-protocols", "iot-devices", "intrusion")


@pytest.mark.parametrize("name", SHIPPED)
def test_models_that_ship_have_one(name):
    directory = shipped_checkpoint(name)
    checkpoint = read_any_checkpoint(directory)
    found = read_baseline(directory, checkpoint)
    assert (found.traffic, len(found.axes)) == ("training", 8)
    assert "in-sample" in found.measured_on
    assert (directory / BASELINE).stat().st_size < MAX_BASELINE_BYTES / 8


def test_the_baseline_of_captures_is_what_classify_says_of_them(monkeypatch):
    monkeypatch.setattr(baseline_making, "MIN_VERDICTS", 10)
    sample = measure(shipped_checkpoint("flow-protocols"), [str(ANDROID)], pytest.fail)
    made = sample.baseline("site", "a phone")
    assert (made.verdicts, made.unknown, made.labels["DNS"], made.labels["TLS"]) == (66, 0, 21, 28)
    assert sum(made.confidence) == 66
    assert [sum(axis.counts) for axis in made.axes] == [66] * len(made.axes)


def test_traces_have_one_of_their_logits(monkeypatch):
    monkeypatch.setattr(baseline_making, "MIN_VERDICTS", 3)
    sample = measure(shipped_checkpoint("iot-devices"), [str(ANDROID)], pytest.fail)
    made = sample.baseline("site", "")
    assert made.verdicts == len(sample.vectors) == sum(made.axes[0].counts)
    assert made.labels == {"unknown": made.verdicts}
    assert len(made.axes[0].direction) == 32


def test_a_sample_of_very_much_is_bounded_and_of_all(monkeypatch):
    monkeypatch.setattr(baseline_making, "MAX_VECTORS", 100)
    sample = Sample()
    for number in range(10_000):
        sample.add_vector(np.array([number], np.float32))
    assert len(sample.vectors) == 100
    assert 3500 < np.mean(sample.vectors) < 6500


def run(*arguments):
    return tapline("models", "baseline", *arguments)


def test_the_command_writes_it_and_leaves_the_rest(tmp_path):
    directory = shipped_copy(shipped_checkpoint("flow-protocols"), tmp_path)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    result = run(directory, CAPTURES, "--measured-on", "test captures", "--to", tmp_path / "new")
    assert result.returncode == 0, result.stderr
    assert "a baseline of " in result.stdout
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    after = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {BASELINE, "checkpoint.json"}
    found = read_baseline(tmp_path / "new", read_any_checkpoint(tmp_path / "new"))
    assert (found.traffic, found.measured_on) == ("site", "test captures")
    again = run(tmp_path / "new", CAPTURES, "--measured-on", "test captures")
    assert again.returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == after
    assert CARD in after


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected captures, or --from DATA_DIR"),
        ([ANDROID, "--from", "/nonexistent"], "give one of them"),
        ([ANDROID], "66 verdicts, expected 300 at least"),
        (["--from", "/nonexistent"], "nothing is remembered of this model"),
    ],
)
def test_what_is_wrong_is_said(arguments, said):
    result = run(shipped_checkpoint("flow-protocols"), *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def hours(version="", axes="", counts=None):
    version = version or read_any_manifest(shipped_checkpoint("flow-protocols")).version
    given = counts or Counts(400, 0, {"DNS": 400}, [400] + [0] * 19)
    return ModelHours(
        "flow-protocols", version, axes, [Hour(**msgspec.structs.asdict(given), hour=hour) for hour in (5, 6)]
    )


def remember(folder, kept):
    state = DriftState(folder / DRIFT_DIRECTORY)
    state.save(kept)
    state.close()


def test_it_is_taken_from_a_service_s_own_days(tmp_path):
    directory = shipped_copy(shipped_checkpoint("flow-protocols"), tmp_path)
    checkpoint = read_any_manifest(directory)
    before = read_baseline(directory, checkpoint)
    axes = [[0] * 15 + [400] for _ in before.axes]
    given = Counts(400, 0, {"DNS": 400}, [400] + [0] * 19, axes)
    remember(tmp_path, hours(axes=checkpoint.files[BASELINE].sha256, counts=given))
    result = run(directory, "--from", tmp_path)
    assert result.returncode == 0, result.stderr
    after = read_baseline(directory, read_any_checkpoint(directory))
    assert (after.traffic, after.verdicts, after.labels) == ("site", 800, {"DNS": 800})
    assert after.axes[0].direction == before.axes[0].direction
    assert after.axes[0].counts == [0] * 15 + [800]


def test_days_of_another_version_are_refused_and_of_other_axes_count_without(tmp_path):
    directory = shipped_copy(shipped_checkpoint("flow-protocols"), tmp_path)
    remember(tmp_path, hours(version="1"))
    assert "the service remembers flow-protocols 1, the checkpoint is" in run(directory, "--from", tmp_path).stderr
    remember(tmp_path, hours(axes="0" * 64))
    assert run(directory, "--from", tmp_path).returncode == 0
    assert read_baseline(directory, read_any_checkpoint(directory)).axes == []
    (tmp_path / DRIFT_DIRECTORY / "flow-protocols.drift").write_bytes(b"x")
    assert "cannot be used: it is not whole" in run(directory, "--from", tmp_path).stderr


@pytest.mark.whole
def test_a_running_service_counts_what_it_says_and_compares_it(tmp_path):
    """The phone's capture, played: every final verdict, every embedding and every logit counts once."""
    service = Service(Settings(replay=ANDROID, speed=0, data_dir=tmp_path, history="sqlite"))

    async def main():
        async with asyncio.timeout(120), service.running():
            await service.replay.finished.wait()
            await service.drift.look()
            return dict(service.drift.newest)

    found = asyncio.run(main())
    assert (found["flow-protocols"].verdicts, found["flow-protocols"].version) == (66, "5")
    assert found["iot-devices"].verdicts > 3
    state = DriftState(tmp_path / DRIFT_DIRECTORY)
    kept = state.load()
    state.close()
    assert set(kept) == set(SHIPPED)
    assert kept["flow-protocols"].hours[-1].embeddings == 66
    for name in ("iot-devices", "intrusion"):
        assert kept[name].hours[-1].embeddings == kept[name].hours[-1].verdicts > 0
    assert kept["intrusion"].axes == read_any_manifest(shipped_checkpoint("intrusion")).files[BASELINE].sha256
