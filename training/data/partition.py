"""Partitions: which samples are for training, validation and test, by capture, host or time. One JSON file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.training.data.split import SplitError
from tapline.training.data.store import StoredSamples
from tapline.training.loop.run_files import write_json

PARTS = ("train", "validation", "test")
By = Literal["capture", "host", "time", "flow"]
_Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Partition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How samples are split.

    * `by` capture or host: `part_of` names the part of every group. By time: flows that start before the first of
      `boundaries_us` are for training, from the second on for the test. By flow: by the hash of its place; flows of one
      capture then stand on both sides, and figures are too good.
    * `features`: the hash of the manifest of each feature directory that was split.
    """

    by: By
    validation: _Share
    test: _Share
    seed: int
    features: dict[str, str]
    part_of: dict[str, str] = {}
    boundaries_us: list[int] = []

    def parts(self, samples: StoredSamples) -> NDArray[np.int64]:
        """The part of each sample as its place in `PARTS`, int64 [n].

        Raises:
            SplitError: a capture or host is not in the partition.
        """
        if self.by == "time":
            return np.searchsorted(np.array(self.boundaries_us), samples.start_us, side="right").astype(np.int64)
        if self.by == "flow":
            draws = np.random.default_rng(self.seed).random(len(samples))
            return np.searchsorted(_bounds(self.validation, self.test), draws, side="right").astype(np.int64)
        names, of = _groups(samples, self.by)
        try:
            place = np.array([PARTS.index(self.part_of[name]) for name in names], np.int64)
        except KeyError as error:
            raise SplitError(f"{self.by} {error.args[0]!r} is not in the split: split these features again") from None
        return place[of]

    def held_out(self, samples: StoredSamples) -> NDArray[np.bool_]:
        """Which samples are for validation or the test, bool [n]; those of other features are not.

        Raises:
            SplitError: the split is by flow, which says nothing of other features.
        """
        if self.by == "flow":
            raise SplitError("a split by flow cannot keep flows out of pre-training: split by capture, host or time")
        if self.by == "time":
            return self.parts(samples) > 0
        names, of = _groups(samples, self.by)
        return np.array([self.part_of.get(name, PARTS[0]) != PARTS[0] for name in names], np.bool_)[of]


def _bounds(validation: float, test: float) -> NDArray[np.float64]:
    return np.array([1 - validation - test, 1 - test])


def _groups(samples: StoredSamples, by: By) -> tuple[list[str], NDArray[np.int32]]:
    if by == "host":
        return samples.host_names, samples.hosts
    return samples.capture_names, samples.captures


def make_partition(
    samples: StoredSamples, by: By, validation: float, test: float, seed: int, features: dict[str, str]
) -> Partition:
    """Split samples into `PARTS`, the groups of each label spread over them as evenly as the shares allow.

    Raises:
        SplitError: the shares leave nothing to train on, or there are fewer groups than parts.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise SplitError(f"--validation {validation:g} and --test {test:g} leave nothing to train on")
    if by == "time":
        order = np.sort(samples.start_us)
        bounds = [int(order[min(int(len(order) * b), len(order) - 1)]) for b in _bounds(validation, test)]
        return Partition(by, validation, test, seed, features, boundaries_us=bounds)
    if by == "flow":
        return Partition(by, validation, test, seed, features)
    names, of = _groups(samples, by)
    held: defaultdict[str, Counter[str]] = defaultdict(Counter)
    pairs, counts = np.unique(np.stack((of, samples.labels), axis=1), axis=0, return_counts=True)
    for (group, label), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        held[names[group]][samples.label_names[label] if label >= 0 else ""] += count
    shares = dict(zip(PARTS, (1 - validation - test, validation, test), strict=True))
    wanted = {part: share for part, share in shares.items() if share > 0}
    if len(held) < len(wanted):
        raise SplitError(f"{len(held)} {by}(s) cannot make {len(wanted)} parts: extract more, or split --by flow")
    return Partition(by, validation, test, seed, features, part_of=_spread(held, wanted, seed))


def _spread(held: Mapping[str, Counter[str]], shares: dict[str, float], seed: int) -> dict[str, str]:
    """A part for every group: rarest label first, each to the part that lacks most of what it holds.

    A part without a label comes first when no more groups of it are left than parts without it: three captures make
    three parts. Labels in fewer groups than there are parts count as one, so that what is too rare to learn is in every
    part.
    """
    spread = Counter(label for labels in held.values() for label in labels)
    rare = {label for label in spread if spread[label] < len(shares)}
    held = {group: Counter({"" if label in rare else label for label in labels}) for group, labels in held.items()}
    spread = Counter(label for labels in held.values() for label in labels)
    got: dict[str, Counter[str]] = {part: Counter() for part in shares}
    left = Counter(spread)
    order = sorted(held)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: min(spread[label] for label in held[group]))
    part_of = {}

    def needs(part: str, label: str) -> bool:
        without = [each for each in shares if not got[each][label]]
        return part in without and left[label] <= len(without)

    for group in order:

        def lack(part: str, group: str = group) -> float:
            return sum(shares[part] - got[part][label] / spread[label] + needs(part, label) for label in held[group])

        best = max(shares, key=lack)
        part_of[group] = best
        got[best].update(held[group].keys())
        left.subtract(held[group].keys())
    return part_of


def write_partition(path: Path, partition: Partition) -> None:
    """Write a partition as JSON, through a temporary file."""
    write_json(path, partition)


def read_partition(path: Path) -> Partition:
    """Read a partition.

    Raises:
        SplitError: it is missing or not one.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Partition)
    except OSError as error:
        raise SplitError(f"{path}: unreadable ({error.strerror}): expected a file written by `split`") from None
    except msgspec.DecodeError as error:
        raise SplitError(f"{path}: not a split: {error}") from None
