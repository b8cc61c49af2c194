"""The student in front of the engine: answers the flows of a batch that it is sure of, and says which are left.

Which those are depends on each flow alone, to the last bit (`models.student`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Checkpoint
from tapline.models.context import ContextTerms
from tapline.models.flow import Flow
from tapline.models.student import StudentModel
from tapline.models.verdict import flow_probabilities
from tapline.service.engines.engine import Scores


@dataclass(frozen=True)
class Answered:
    """What a student says of n flows, and of which it is `sure`, bool [n]: what it says of others counts nothing."""

    scores: Scores
    sure: NDArray[np.bool_]

    @property
    def flows(self) -> int:
        """How many it answers."""
        return int(np.count_nonzero(self.sure))

    def with_computed(self, rows: NDArray[np.int64], computed: Scores) -> Scores:
        """The same, with what the network says of the flows at `rows` in their places."""
        self.scores.logits[rows], self.scores.embeddings[rows] = computed.logits, computed.embeddings
        return Scores(self.scores.logits, self.scores.embeddings, computed.padding_tokens)


class Cascade:
    """The student of a checkpoint with the rule by which it answers."""

    def __init__(self, student: StudentModel, checkpoint: Checkpoint, terms: ContextTerms | None) -> None:
        assert checkpoint.student is not None
        self._student, self._checkpoint, self._terms = student, checkpoint, terms
        self._thresholds = checkpoint.student.threshold, checkpoint.student.threshold_without_ports

    def answer(
        self, flows: Sequence[Flow], ports: bool | Sequence[bool], asked: bool | Sequence[bool] = True
    ) -> Answered:
        """What the student says of flows; `ports` says of all, or of each, whether ports are read, `asked` whether it
        may answer."""
        said = self._student.scores(flows)
        shares = flow_probabilities(said.logits, flows, self._checkpoint, self._terms, ports=ports)
        sure = (shares.max(axis=1) >= np.where(ports, *self._thresholds)) & asked
        return Answered(Scores(said.logits, said.embeddings), np.asarray(sure))
