"""What a student is taught with: flows as they came, disturbed copies of them, and what the whole network says of each.

No label is read: the student learns what the network says, also of flows that are like nothing real, where it is to
learn not to be sure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from tapline.models.encode import MAX_LENGTH, Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.models.student import StudentNetwork, symbols
from tapline.training.data.batches import cut_flows, plain_batches
from tapline.training.loop.config import Augmentation

TEACHER_BATCH_FLOWS = 64


class Disturbance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the flows of lessons differ from the recorded ones, beside what `Augmentation` cuts: each is a probability,
    or a share drawn up to that bound."""

    other_content: float = 0.2
    """of having the content of another flow"""
    other_lengths: float = 0.2
    """of having the payload lengths of another flow"""
    random_content: float = 0.08
    """of having random bytes alone"""
    noise: float = 0.5
    """of having some random bytes"""
    noise_share: float = 0.3
    """largest share of these"""
    jitter: float = 0.4
    """of having other payload lengths, by `Augmentation.jitter_lengths`"""


class Said(NamedTuple):
    """What a network says of n flows: logits float32 [n, classes], embeddings float32 [n, width]."""

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True)
class Lessons:
    """Flows of a student: their symbols int64 [n, fields], what the network says, the transports' terms float32
    [n, classes], how often each is drawn float64 [n], and of which flow of the training set it was made, int64 [n]."""

    symbols: NDArray[np.int64]
    said: Said
    terms: NDArray[np.float32]
    weights: NDArray[np.float64]
    made_of: NDArray[np.int64]

    def take(self, kept: NDArray[np.bool_]) -> Lessons:
        """Those made of the flows that are kept, bool [flows]."""
        rows = kept[self.made_of]
        said = Said(self.said.logits[rows], self.said.embeddings[rows])
        return Lessons(self.symbols[rows], said, self.terms[rows], self.weights[rows], self.made_of[rows])


@torch.inference_mode()
def ask(teacher: Mm4flow, flows: Sequence[Flow], features: Mm4flowFeatures) -> Said:
    """What the network says of flows, in order."""
    teacher.eval()
    width, classes = teacher.get_parameter("classifier.0.weight").shape[::-1]
    said = Said(np.zeros((len(flows), classes), np.float32), np.zeros((len(flows), width), np.float32))
    for batch in plain_batches(flows, TEACHER_BATCH_FLOWS, features):
        output = teacher(batch.ps_tokens, batch.bytes_tokens, batch.bytes_types)
        said.logits[batch.rows] = output.logits.float().numpy()
        said.embeddings[batch.rows] = output.embedding.float().numpy()
    return said


def make_lessons(
    teacher: Mm4flow,
    flows: Sequence[Flow],
    terms: NDArray[np.float32],
    weights: NDArray[np.float64],
    features: Mm4flowFeatures,
    network: StudentNetwork,
    copies: int,
    seed: int,
    report: Callable[[], None] = lambda: None,
) -> Lessons:
    """The flows themselves and `copies` disturbed copies of each; `report` is called after each round of them.

    A flow is drawn half by its weight, float64 [n], and half as often as any other, itself 1.5 times as often as one of
    its copies; `terms` are those of its transport, which stay.
    """
    rng, how = np.random.default_rng(seed), Disturbance()
    share = 0.5 * weights / weights.sum() + 0.5 / len(flows)
    parts, said, shares = [], [], []
    for number in range(copies + 1):
        drawn = disturbed(flows, how, rng) if number else flows
        parts.append(symbols(drawn, network, features))
        said.append(ask(teacher, drawn, features))
        shares.append(share if number else 1.5 * share)
        report()
    together = Said(*(np.concatenate(each) for each in zip(*said, strict=True)))
    made_of = np.tile(np.arange(len(flows)), copies + 1)
    return Lessons(np.concatenate(parts), together, terms[made_of], np.concatenate(shares), made_of)


def disturbed(flows: Sequence[Flow], how: Disturbance, rng: np.random.Generator) -> list[Flow]:
    """A cut and changed copy of each flow."""
    changed = []
    for flow in cut_flows(flows, Augmentation(), rng):
        sides, lengths = (flow.orig_bytes, flow.resp_bytes), flow.payload_lengths
        if rng.random() < how.other_content:
            other = flows[int(rng.integers(len(flows)))]
            sides = other.orig_bytes, other.resp_bytes
        if rng.random() < how.other_lengths:
            lengths = flows[int(rng.integers(len(flows)))].payload_lengths
        if rng.random() < how.random_content:
            sides = rng.bytes(len(sides[0])), rng.bytes(len(sides[1]))
        if rng.random() < how.noise:
            share = rng.uniform(0, how.noise_share)
            sides = _noisy(sides[0], share, rng), _noisy(sides[1], share, rng)
        if rng.random() < how.jitter:
            lengths = _jittered(lengths, rng)
        changed.append(msgspec.structs.replace(flow, orig_bytes=sides[0], resp_bytes=sides[1], payload_lengths=lengths))
    return changed


def _noisy(content: bytes, share: float, rng: np.random.Generator) -> bytes:
    values = np.frombuffer(content, np.uint8).copy()
    hit = rng.random(len(values)) < share
    values[hit] = rng.integers(0, 256, int(hit.sum()))
    return values.tobytes()


def _jittered(lengths: Sequence[int], rng: np.random.Generator) -> list[int]:
    found = np.asarray(lengths, np.int64)
    factors = np.exp(rng.normal(0, Augmentation().jitter_lengths, len(found)))
    moved = np.clip(np.rint(np.abs(found) * factors), 1, MAX_LENGTH)
    changed: list[int] = (np.sign(found) * moved).astype(np.int64).tolist()
    return changed
