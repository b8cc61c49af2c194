"""Which flows the student of a checkpoint answers: the rule that serving and `training` share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Checkpoint
from tapline.models.context import ContextTerms
from tapline.models.flow import Flow
from tapline.models.verdict import flow_probabilities


def is_sure(
    logits: NDArray[np.float32],
    flows: Sequence[Flow],
    checkpoint: Checkpoint,
    terms: ContextTerms | None,
    *,
    ports: bool | Sequence[bool] = True,
) -> NDArray[np.bool_]:
    """Of n flows, which a student answers that gives them these logits, float32 [n, classes]; bool [n].

    Arguments as of `models.verdict.flow_probabilities`; the checkpoint has a student.
    """
    student = checkpoint.student
    assert student is not None
    shares = flow_probabilities(logits, flows, checkpoint, terms, ports=ports)
    thresholds = np.where(ports, student.threshold, student.threshold_without_ports)
    return np.asarray(shares.max(axis=1, initial=0.0) >= thresholds)
