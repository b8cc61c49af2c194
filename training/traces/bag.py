"""The weights of `models.tracegram.Bag`: a logistic regression on the values that occur in traces, fitted by itself.

Few traces teach it nearly all that they can teach, where a network learns by heart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression
from torch.nn.utils.rnn import pad_sequence

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.tracegram import Bag
from tapline.training.traces.features import TraceFeatures, kept_flows
from tapline.training.traces.trace_config import BagTraining, TraceAugmentation

BATCH_TRACES = 64
MOST_STEPS = 1000
ALL_FLOWS = 1 << 30


@torch.no_grad()
def fit_bag(
    network: TracegramNetwork,
    traces: Sequence[TraceFeatures],
    truth: NDArray[np.int64],
    weights: NDArray[np.float64],
    how: BagTraining,
    seed: int,
) -> Bag:
    """The bag of such a network, from traces of the classes `truth` int64 [n], each of which counts as
    `weights` float64 [n] say, which sum to 1. A class without traces is the least likely one.

    A part of the weight of each trace is that of parts of it, so that a few flows are told from many.
    """
    bag = Bag(network)
    rng = np.random.default_rng([seed, 4])
    cut = TraceAugmentation(drop_flows=how.drop_flows, most_flows=ALL_FLOWS, part=how.part, short_parts=True)
    tables, shares = [occurrences(bag, [trace.context for trace in traces])], [weights * (1 - how.parts_share)]
    for _ in range(how.parts):
        parts = [trace.context[kept_flows(len(trace), cut, rng)] for trace in traces]
        tables.append(occurrences(bag, parts))
        shares.append(weights * how.parts_share / how.parts)
    fitted = LogisticRegression(C=how.strength, max_iter=MOST_STEPS).fit(
        vstack(tables).tocsr(), np.tile(truth, len(tables)), sample_weight=np.concatenate(shares)
    )
    return _with_weights(bag, fitted, how)


def occurrences(bag: Bag, contexts: Sequence[NDArray[np.uint8]]) -> csr_matrix:
    """What the bag reads of traces of these contexts, uint8 [k, fields] each, float32 [n, rows]."""
    parts = []
    for start in range(0, len(contexts), BATCH_TRACES):
        part = [torch.from_numpy(context) for context in contexts[start : start + BATCH_TRACES]]
        read = bag.occurrences(pad_sequence(part, batch_first=True), torch.tensor([len(each) for each in part]))
        parts.append(csr_matrix(read.numpy()))
    return vstack(parts).tocsr()


def _with_weights(bag: Bag, fitted: LogisticRegression, how: BagTraining) -> Bag:
    """The bag with the weights of a regression of all classes or of some, times their scale."""
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # of two, only the second has weights
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    bag.linear.weight.zero_()
    bag.linear.bias.fill_(float(bias.min()) * how.scale)
    classes = torch.from_numpy(fitted.classes_)
    bag.linear.weight[classes] = torch.from_numpy(weight * how.scale).float()
    bag.linear.bias[classes] = torch.from_numpy(bias * how.scale).float()
    return bag.eval()
