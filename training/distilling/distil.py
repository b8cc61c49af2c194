"""Teaches a student what a flow model says, and finds from which confidence on its answers are the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tapline.models.checkpoint import Checkpoint
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.models.student import Student, StudentModel, StudentNetwork, StudentScores, StudentWeights
from tapline.models.verdict import context_terms
from tapline.training.distilling.lessons import Lessons, Said, make_lessons
from tapline.training.distilling.student_gate import Gate, agreed, find_threshold
from tapline.training.distilling.student_network import LearningStudent
from tapline.training.evaluation.calibration import capped_weights

EMBEDDING_LOSS = 0.1
WARM_UP_STEPS, LAST_RATE = 100, 1e-3


class DistilSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a student is taught. `copies`: disturbed copies of each flow; `folds`: students that are taught without a
    part of the captures each, to find the thresholds; `agreement`: least share of the flows that these answer, of
    captures that they did not learn from, of which the whole network says the same."""

    network: StudentNetwork = StudentNetwork()
    copies: int = 5
    steps: int = 1500
    batch_flows: int = 512
    learning_rate: float = 5e-3
    weight_decay: float = 0.02
    folds: int = 3
    agreement: float = 0.999
    seed: int = 0


class StudentFigures(msgspec.Struct, frozen=True):
    """What was found of a student: of `flows` of `captures`, each said by a student that did not learn its capture.

    `gate` with ports and `gate_without_ports`; `embedding_error`: mean square of the difference of the embedding, in
    units of its variance."""

    settings: DistilSettings
    flows: int
    captures: int
    gate: Gate
    gate_without_ports: Gate
    embedding_error: float


@dataclass(frozen=True)
class Taught:
    """A student: its weights, what the manifest says of it, and how the latter was found."""

    weights: StudentWeights
    student: Student
    figures: StudentFigures


@dataclass(frozen=True)
class Class:
    """Who is taught: flows, the capture of each, int [n], and how often to draw each, float64 [n]."""

    flows: Sequence[Flow]
    captures: NDArray[np.int32]
    weights: NDArray[np.float64]


def distil(
    teacher: Mm4flow,
    checkpoint: Checkpoint,
    taught: Class,
    settings: DistilSettings,
    report: Callable[[str], None] = lambda _: None,
) -> Taught:
    """The student of a network, which serves with the context, calibration and unknown rule of `checkpoint`."""
    lessons = lessons_of(teacher, checkpoint, taught, settings, report)
    held = cross_fitted(checkpoint, taught, lessons, settings, report)
    report("the student")
    weights = teach(lessons, settings)
    student, figures = gated(checkpoint, taught, own_answers(lessons, len(taught.flows)), held, settings)
    return Taught(weights, student, figures)


def lessons_of(
    teacher: Mm4flow,
    checkpoint: Checkpoint,
    taught: Class,
    settings: DistilSettings,
    report: Callable[[str], None] = lambda _: None,
) -> Lessons:
    """What the flows teach, the flows themselves first."""
    terms = context_terms(checkpoint)
    barred = (
        np.zeros((len(taught.flows), checkpoint.network.n_class), np.float32)
        if terms is None
        else terms.transports(taught.flows)
    )
    return make_lessons(
        teacher, taught.flows, barred, taught.weights, checkpoint.features, settings.network, settings.copies,
        settings.seed, lambda: report("lessons"),
    )  # fmt: skip


def own_answers(lessons: Lessons, flows: int) -> Said:
    """What the network says of the flows themselves."""
    return Said(lessons.said.logits[:flows], lessons.said.embeddings[:flows])


def cross_fitted(
    checkpoint: Checkpoint,
    taught: Class,
    lessons: Lessons,
    settings: DistilSettings,
    report: Callable[[str], None] = lambda _: None,
) -> StudentScores:
    """What students say of the flows of captures that they did not learn from."""
    rng = np.random.default_rng(settings.seed)
    captures, place = np.unique(taught.captures, return_inverse=True)
    fold_of = rng.permutation(len(captures)) % settings.folds
    found: StudentScores | None = None
    for fold in range(settings.folds):
        report(f"a student without fold {fold + 1} of {settings.folds}")
        aside = fold_of[place.ravel()] == fold
        weights = teach(lessons.take(~aside), settings)
        rows = np.flatnonzero(aside)
        model = StudentModel(settings.network, checkpoint.features, weights)
        said = model.scores([taught.flows[row] for row in rows.tolist()])
        if found is None:
            found = StudentScores(*(np.zeros((len(taught.flows), part.shape[1]), np.float32) for part in said))
        for whole, part in zip(found, said, strict=True):
            whole[rows] = part
    assert found is not None
    return found


def gated(
    checkpoint: Checkpoint, taught: Class, teacher: Said, held: StudentScores, settings: DistilSettings
) -> tuple[Student, StudentFigures]:
    """The thresholds of a student, by what those say that are `cross_fitted`."""

    def gate(*, ports: bool) -> Gate:
        outcome = agreed(checkpoint, taught.flows, teacher.logits, held.logits, ports=ports)
        weights = capped_weights([str(capture) for capture in taught.captures.tolist()], outcome.said)
        return find_threshold(outcome, weights, settings.agreement)

    with_ports, without = gate(ports=True), gate(ports=False)
    error = np.square(held.embeddings - teacher.embeddings).mean() / teacher.embeddings.var(axis=0).mean()
    captures = len(np.unique(taught.captures))
    figures = StudentFigures(settings, len(taught.flows), captures, with_ports, without, round(float(error), 4))
    return Student(settings.network, with_ports.threshold, without.threshold), figures


def teach(lessons: Lessons, settings: DistilSettings) -> StudentWeights:
    """A student of the lessons: its loss is the cross-entropy to the network's shares of the classes that a flow's
    transport allows, and the square error of the embedding."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    logits, embeddings = map(torch.from_numpy, lessons.said)
    symbols, terms = torch.from_numpy(lessons.symbols), torch.from_numpy(lessons.terms)
    student = LearningStudent(settings.network, logits.shape[1], embeddings.shape[1])
    optimizer = torch.optim.AdamW(
        student.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    variance, cumulated = embeddings.var(), np.cumsum(lessons.weights / lessons.weights.sum())
    for _ in range(settings.steps):
        drawn = np.searchsorted(cumulated, rng.random(settings.batch_flows) * cumulated[-1], side="right")
        rows = torch.from_numpy(np.minimum(drawn, len(cumulated) - 1))
        said, felt = student(symbols[rows])
        wanted = (logits[rows] + terms[rows]).softmax(1)
        loss = -(wanted * functional.log_softmax(said + terms[rows], dim=1)).sum(1).mean()
        loss = loss + EMBEDDING_LOSS * (felt - embeddings[rows]).square().mean() / variance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return student.weights()


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.5 + 0.5 * float(np.cos(np.pi * step / steps))) + LAST_RATE
