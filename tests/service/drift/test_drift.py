"""Drift is told where what a model sees has moved, and not where the same traffic comes again; hours outlive a
restart, and nothing grows."""

import asyncio
import shutil
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from tapline.installation import install_command
from tapline.models.baseline import Baseline, Projection, principal_axes, read_baseline
from tapline.models.checkpoint import BASELINE, CheckpointError, read_any_manifest
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.verdict import Verdict
from tapline.service.drift.counts import KEPT_HOURS, Counts
from tapline.service.drift.distances import LIMITS, NEVER, compare
from tapline.service.drift.drift_monitor import MAX_SAMPLES, DriftMonitor
from tapline.service.drift.drift_state import ModelHours
from tapline.service.drift.model_drift import MIN_VERDICTS
from tapline.service.metrics import Metrics
from tapline.service.traces.state_files import framed
from tests.service.history.kept import BUS, flow, trace

HOUR = 3600
START = 1_800_000_000.0 // HOUR * HOUR
WIDTH = 12


def verdict(label, confidence, model="flows", version="1", **fields):
    unknown = label == "unknown"
    return Verdict(label, "tls" if unknown else label, confidence, unknown, [], model, version, **fields)


QUIET = [("tls", 0.98)] * 60 + [("dns", 0.99)] * 35 + [("unknown", 0.4)] * 5
STRANGE = [("tls", 0.7)] * 20 + [("dns", 0.9)] * 15 + [("unknown", 0.35)] * 65


def counts(mix, times=10):
    found = Counts()
    for label, confidence in mix * times:
        found.add(verdict(label, confidence))
    return found


def embeddings(seed=0, centre=0.0, n=1000):
    return (np.random.default_rng(seed).normal(centre, 1, (n, WIDTH)) * np.arange(1, WIDTH + 1)).astype(np.float32)


def baseline_of(mix=QUIET, traffic="site", vectors=None):
    given = counts(mix)
    axes = principal_axes(embeddings() if vectors is None else vectors)
    return Baseline(traffic, "a quiet week", given.verdicts, given.unknown, given.labels, given.confidence, axes)


def write_baseline(directory, baseline):
    """A checkpoint as it was, with a baseline."""
    checkpoint = read_any_manifest(directory)
    kept = {name: (directory / name).read_bytes() for name in checkpoint.files if name != BASELINE}

    def put(folder):
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        (folder / BASELINE).write_bytes(msgspec.json.encode(baseline))

    return write_checkpoint(directory, checkpoint, put)


class Clock:
    def __init__(self):
        self.at = START

    def __call__(self):
        return self.at


class Watching:
    """A monitor whose clock a test moves, and what it told."""

    every: ClassVar[list] = []

    def __init__(self, directory=None, baseline=None, clock=None):
        self.every.append(self)
        self.told = []
        self.clock = clock or Clock()
        self.metrics = Metrics()
        self.monitor = DriftMonitor(self._find, self.metrics, self.told.append, directory=directory, clock=self.clock)
        self.monitor.start()
        self.monitor._read = lambda model, version: (baseline, "0" * 64 if baseline else "")

    def _find(self, model, version):
        raise LookupError

    def day(self, mix=QUIET, hours=24, vectors=None, **fields):
        """So many hours of the same traffic."""
        for _ in range(hours):
            for label, confidence in mix:
                self.monitor.flow(BUS, flow(), verdict(label, confidence, **fields))
            for vector in [] if vectors is None else vectors:
                self.monitor.embedding(verdict("tls", 1.0, **fields), vector)
            self.clock.at += HOUR
        self.clock.at -= 1  # the last of these hours still runs
        found = self.look()
        self.clock.at += 1
        return found

    def look(self):
        asyncio.run(self.monitor.look())
        return self.monitor.newest.get("flows")


@pytest.fixture(autouse=True)
def _ended():
    yield
    while Watching.every:
        asyncio.run(Watching.every.pop().monitor.stop())


def drifted(drift):
    return [(each.measure, each.against) for each in drift.drifted]


def test_distances_are_those_of_scipy():
    """Literal values: half of the verdicts have moved to a label of their own, and lost half of their confidence."""
    before, now = counts([("tls", 0.975)], 400), counts([("tls", 0.975), ("unknown", 0.475)], 200)
    found = {each.measure: each for each in compare(now, [before], "baseline")}
    assert found["labels"].distance == pytest.approx(0.5579, abs=1e-4)  # sqrt(JSD([1, 0], [.5, .5])), base 2
    assert found["confidence"].distance == pytest.approx(0.25)
    assert found["unknown"].distance == pytest.approx(0.5)
    assert "embedding" not in found
    assert found["labels"].reason == "mix of labels: tls 50.0% (was 100.0%), unknown 50.0% (was 0.0%)"
    assert found["confidence"].reason == "mean confidence 72.5% (was 97.5%)"
    assert found["unknown"].reason == "unknown 50.0% (was 0.0%)"


def test_too_few_verdicts_are_not_compared():
    few, enough = counts([("tls", 1.0)], MIN_VERDICTS - 1), counts([("dns", 1.0)], MIN_VERDICTS)
    assert compare(few, [enough], "baseline") == compare(enough, [few], "baseline") == []
    assert len(compare(enough, [enough], "baseline")) == 3


def test_what_was_as_it_was_on_one_of_several_days_has_not_moved():
    week = [counts(STRANGE), counts([("ssh", 0.9)] * 100), counts(QUIET)]
    assert [each.distance for each in compare(counts(QUIET), week, "last week")] == [0.0, 0.0, 0.0]


def test_what_a_model_was_made_from_is_no_mix_to_keep_to():
    found = compare(counts([("ssh", 1.0)] * 100), [counts(QUIET)], "baseline", training=True)
    assert found[0].distance == 1.0
    assert [(each.limit, each.drifted) for each in found] == [(NEVER, False)] * 3


def test_embeddings_move_along_axes():
    axes = principal_axes(embeddings())
    assert len(axes) == 8
    projection = Projection(axes)
    same, other = projection.counts(embeddings(1)), projection.counts(embeddings(2, centre=1.5))
    assert same.sum(axis=1).tolist() == [1000] * 8
    broken = embeddings(1)
    broken[0, 3] = np.nan
    assert projection.counts(broken).sum(axis=1).tolist() == [999] * 8

    def with_axes(found):
        one = counts(QUIET)
        one.add_embeddings(found)
        return one

    def distance(now, before):
        return compare(with_axes(now), [with_axes(before)], "last week")[-1].distance

    limit = LIMITS["embedding"]
    assert distance(same, np.array([axis.counts for axis in axes])) < limit / 2
    assert distance(other, same) > limit


def test_equal_values_lie_on_no_edge_of_a_bin():
    """Half of all flows are the same: rounding in another engine must not move them."""
    vectors = embeddings()
    vectors[::2] = vectors[0]
    projection = Projection(principal_axes(vectors))
    for tiny in (-1e-5, 1e-5):
        assert np.array_equal(projection.counts(vectors + np.float32(tiny))[:, :], projection.counts(vectors))


def test_a_quiet_fortnight_is_quiet_and_a_strange_day_is_told():
    watching = Watching(baseline=baseline_of())
    vectors = embeddings(3, n=200)
    for day in range(14):
        drift = watching.day(vectors=vectors)
        assert drift.drifted == []
        assert {each.against for each in drift.measures} == ({"baseline"} if day < 3 else {"baseline", "last week"})
        assert (drift.verdicts, drift.model, drift.version) == (24 * len(QUIET), "flows", "1")
        assert drift.start_us == round((watching.clock.at - 24 * HOUR) * 1e6)
    drift = watching.day(STRANGE, vectors=embeddings(4, centre=2.0, n=200))
    every = [(measure, against) for against in ("baseline", "last week")
             for measure in ("labels", "confidence", "unknown", "embedding")]  # fmt: skip
    assert drifted(drift) == every
    assert watching.told[-1] == drift
    registry = watching.metrics.registry
    for measure, against in every:
        labels = {"model": "flows", "measure": measure, "against": against.replace(" ", "_")}
        (found,) = [each for each in drift.measures if (each.measure, each.against) == (measure, against)]
        assert registry.get_sample_value("tapline_drift_distance", labels) == found.distance
        assert registry.get_sample_value("tapline_drift_limit", labels) == found.limit


def test_an_hour_of_night_is_no_drift():
    """What is compared are days: a night whose mix is another is part of each."""
    watching = Watching()
    for _ in range(5):
        watching.day(QUIET, hours=16)
        drift = watching.day(STRANGE[:35], hours=8)
        assert drift.drifted == []
    assert {each.against for each in drift.measures} == {"last week"}


def test_nothing_is_told_of_a_model_with_too_little():
    watching = Watching(baseline=baseline_of())
    drift = watching.day([("tls", 1.0)], hours=24)
    assert (drift.verdicts, drift.measures, watching.told) == (24, [], [])


def test_early_verdicts_do_not_count_and_hosts_do():
    watching = Watching()
    watching.monitor.flow(BUS, flow(), None)
    watching.monitor.flow(BUS, flow(), verdict("tls", 0.5, final=False))
    watching.monitor.trace(trace(final=False))
    assert watching.look() is None
    watching.monitor.trace(trace())
    watching.look()
    assert [(drift.model, drift.verdicts) for drift in watching.monitor.newest.values()] == [("devices", 1)]


def test_last_week_is_known_after_a_restart(tmp_path):
    clock = Clock()
    before = Watching(tmp_path / "drift", baseline_of(), clock)
    for _ in range(5):
        drift = before.day(vectors=embeddings(3, n=20))
    before.day(hours=1)
    asyncio.run(before.monitor.stop())
    after = Watching(tmp_path / "drift", baseline_of(), clock)
    later = after.day(STRANGE, hours=23, vectors=embeddings(3, n=20))
    assert {each.against for each in drift.measures} == {"baseline", "last week"}
    assert ("labels", "last week") in drifted(later)
    assert next(each for each in later.measures[::-1] if each.measure == "embedding").distance == pytest.approx(
        0, abs=0.02
    )


def test_another_version_begins_anew(tmp_path):
    watching = Watching(tmp_path)
    for _ in range(5):
        watching.day()
    assert watching.day(version="2").measures == []
    assert watching.monitor.newest["flows"].version == "2"
    asyncio.run(watching.monitor.stop())
    assert [each.measures for each in [Watching(tmp_path, clock=watching.clock).day(version="1")]] == [[]]


def test_two_services_do_not_write_the_same_hours(tmp_path):
    first, second = Watching(tmp_path), Watching(tmp_path)
    first.day()
    second.day(STRANGE, hours=2)
    asyncio.run(second.monitor.stop())
    asyncio.run(first.monitor.stop())
    third = Watching(tmp_path, clock=first.clock)
    third.monitor.flow(BUS, flow(), verdict("tls", 1.0))
    assert third.look().verdicts == 23 * len(QUIET) + 1


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "negative", "other hours", "huge"])
def test_a_damaged_file_costs_what_it_held_alone(tmp_path, harm):
    watching = Watching(tmp_path)
    watching.day()
    watching.day(model="other")
    asyncio.run(watching.monitor.stop())
    path = tmp_path / "flows.drift"
    whole = path.read_bytes()
    kept = msgspec.json.decode(whole[8:], type=ModelHours)
    if harm == "negative":
        kept.hours[0].verdicts = -1
    elif harm == "other hours":
        kept.hours.reverse()
    elif harm == "huge":
        kept.hours = [msgspec.structs.replace(kept.hours[0], hour=hour) for hour in range(KEPT_HOURS + 2)]
    made = framed(msgspec.json.encode(kept))
    flipped = bytes([*whole[:100], whole[100] ^ 1, *whole[101:]])
    path.write_bytes({"cut": whole[:-5], "flipped": flipped, "empty": b""}.get(harm, made))
    again = Watching(tmp_path, clock=watching.clock)
    for model in ("flows", "other"):
        again.monitor.flow(BUS, flow(), verdict("tls", 1.0, model=model))
    again.look()
    assert again.monitor.newest["flows"].verdicts == 1
    assert again.monitor.newest["other"].verdicts > 1000


def test_what_is_remembered_is_bounded():
    watching = Watching(baseline=baseline_of())
    for _ in range(12):
        watching.day(hours=24)
    for vector in embeddings(n=MAX_SAMPLES + 100):
        watching.monitor.embedding(verdict("tls", 1.0), vector)
    (known,) = watching.monitor._models.values()
    assert len(known.hours) <= KEPT_HOURS + 1
    assert len(known.samples) == MAX_SAMPLES
    assert all(sample.base is None for sample in known.samples)  # none keeps its batch alive
    watching.look()
    assert not known.samples
    watching.clock.at += 30 * 24 * HOUR
    assert watching.look().verdicts == 0
    assert not known.hours


def test_a_clock_that_goes_back_loses_nothing_and_one_that_leapt_is_forgotten():
    watching = Watching()
    watching.day(hours=2)
    watching.clock.at -= HOUR
    assert watching.day(hours=1).verdicts == 3 * len(QUIET)
    watching.clock.at += 1000 * 24 * HOUR
    watching.monitor.flow(BUS, flow(), verdict("tls", 1.0))
    watching.clock.at -= 1000 * 24 * HOUR
    watching.look()
    assert watching.day(hours=1).verdicts >= len(QUIET)


def test_without_scipy_it_says_so(monkeypatch):
    monkeypatch.setattr("tapline.service.drift.drift_monitor.has_scipy", lambda: False)
    watching = Watching(baseline=baseline_of())
    assert watching.day().measures == []
    assert watching.monitor.problem == f"SciPy is not installed: {install_command('drift')}"


def shipped_copy(checkpoint_dir, tmp_path):
    return shutil.copytree(checkpoint_dir, tmp_path / "copy")


def fitting_baseline(checkpoint, **fields):
    vectors = np.random.default_rng(0).normal(size=(400, 2 * checkpoint.network.d_model)).astype(np.float32)
    label = checkpoint.labels[0]
    made = Baseline("site", "", 10, 0, {label: 10}, [10] + [0] * 19, principal_axes(vectors))
    return msgspec.structs.replace(made, **fields)


def test_a_baseline_is_a_file_of_its_checkpoint(checkpoint_dir, tmp_path):
    directory = shipped_copy(checkpoint_dir, tmp_path)
    checkpoint = read_any_manifest(directory)
    assert read_baseline(directory, checkpoint) is None
    given = fitting_baseline(checkpoint)
    written = write_baseline(directory, given)
    assert read_baseline(directory, written) == given
    (directory / BASELINE).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="copy it again"):
        read_baseline(directory, written)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": {"nobody's": 10}}, "1 labels that the checkpoint does not know"),
        ({"verdicts": 11}, "11 verdicts, and its counts are of another number"),
        ({"format_version": 2}, "a baseline of version 2"),
        ({"axes": principal_axes(embeddings())}, f"an axis of {WIDTH} numbers for a network that gives"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(checkpoint_dir, tmp_path, fields, said):
    directory = shipped_copy(checkpoint_dir, tmp_path)
    written = write_baseline(directory, fitting_baseline(read_any_manifest(directory), **fields))
    with pytest.raises(CheckpointError, match=said):
        read_baseline(directory, written)


@pytest.mark.parametrize("content", [b"", b"[" * 10_000, b'{"traffic": "other"}', b"\xff", b'{"axes": [{}]}'])
def test_a_file_that_is_no_baseline_is_refused(checkpoint_dir, tmp_path, content):
    directory = shipped_copy(checkpoint_dir, tmp_path)
    checkpoint = read_any_manifest(directory)
    names = list(checkpoint.files)
    kept = {name: (directory / name).read_bytes() for name in names}

    def put(folder):
        for name in names:
            (folder / name).write_bytes(kept[name])
        (folder / BASELINE).write_bytes(content)

    written = write_checkpoint(directory, checkpoint, put)
    with pytest.raises(CheckpointError, match="not a baseline"):
        read_baseline(directory, written)
