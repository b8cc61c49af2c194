"""What the model of a fold and its rivals say of the flows that were held out, as they came and with other ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.context import ContextTerms
from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.training.data.batches import first_content, prefix
from tapline.training.data.corpus import Corpus
from tapline.training.data.store import StoredFlows
from tapline.training.evaluation.flow_folds import Fold, network_of
from tapline.training.evaluation.other_ports import forged_ports, random_ports
from tapline.training.evaluation.outcomes import FlowOutcome, Logits
from tapline.training.evaluation.rivals import (
    PortTable,
    columns,
    context_columns,
    fit_forest,
    fit_trees,
    statistics,
)
from tapline.training.flows.context_counts import learn_context
from tapline.training.flows.finetune import predict
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.scores import Ints

PACKETS_SEEN = (1, 2, 4, 8, 16, 32)
"""Payload packets of a flow after which an early verdict is measured."""
CONTENTS = (0, 4, 8, 16, 32, 64)
"""Content bytes each way that a verdict on a flow is measured with."""

Int8Logits = Callable[[Mm4flow, Mm4flowNetwork, Sequence[Flow], Mm4flowFeatures], Logits]
"""What the quantised form of a model says of flows, in order, float32 [n, classes]."""


def measure_flows(
    fold: Fold, corpus: Corpus, config: TrainingConfig, model: Mm4flow, int8: Int8Logits | None = None
) -> FlowOutcome:
    """Measure a model trained on the data of a fold, with the context of these data, and simpler ones, on its held and
    its strange flows."""
    held, strange = fold.held, fold.strange
    truth, rng = corpus.truth(held), np.random.default_rng((config.seed, fold.number))
    changed = {"random": random_ports(held.flows, rng), "forged": forged_ports(held.flows, truth, rng)}
    return FlowOutcome(
        fold=fold.number,
        captures=held.captures_of(),
        truth=truth,
        unknown_captures=strange.captures_of(),
        unknown_labels=[str(label) for label in strange.labels_of()],
        corpus=fold.corpus,
        ids=held.ids,
        **_said_by_model(fold, corpus, config, model, changed, int8),
        **_said_by_rivals(fold, corpus, config, changed),
    )


def _said_by_model(
    fold: Fold,
    corpus: Corpus,
    config: TrainingConfig,
    model: Mm4flow,
    changed: dict[str, StoredFlows],
    int8: Int8Logits | None,
) -> dict[str, Any]:
    """Logits with context, those without ports and with `changed` ones only where ports are read."""
    held, strange, features = fold.held.flows, fold.strange.flows, config.features
    network, n_label = network_of(corpus, config, background=fold.background), len(corpus.labels)
    terms = ContextTerms(learn_context(fold.data, config.port_weight), n_label, network.n_class)
    barred, unknown_barred = terms.transports(held), terms.transports(strange)
    added = barred + terms.ports(held)
    plain, unknown_plain = predict(model, held, features), predict(model, strange, features)
    said: dict[str, Any] = {
        "logits": plain + added,
        "prefixes": {n: predict(model, [prefix(f, n) for f in held], features) + added for n in PACKETS_SEEN},
        "contents": {n: predict(model, [first_content(f, n) for f in held], features) + added for n in CONTENTS},
        "unknown_logits": unknown_plain + unknown_barred + terms.ports(strange),
    }
    if int8:
        small = (int8(model, network, held, features) + added)[:, :n_label]
        said["int8"] = np.asarray(small.argmax(axis=1), np.int64)
    if config.port_weight:
        said |= {"without_ports": plain + barred, "unknown_without_ports": unknown_plain + unknown_barred}
        said |= {f"{how}_ports": plain + barred + terms.ports(flows) for how, flows in changed.items()}
    return said


def _said_by_rivals(
    fold: Fold, corpus: Corpus, config: TrainingConfig, changed: dict[str, StoredFlows]
) -> dict[str, Any]:
    """Classes that simpler models predict which learned from the same flows of known labels."""
    held, strange = fold.held.flows, fold.strange.flows
    seen = fold.data.truth < len(corpus.labels)
    flows, truth = fold.data.flows, fold.data.truth[seen]
    assert isinstance(flows, StoredFlows)
    known = flows.take(seen)
    table = PortTable(known, truth, fold.data.captures[seen])
    return {
        **_said_by_trees(known, truth, held, strange, config),
        **_said_by_context_trees(known, truth, held, changed, config),
        "forest": fit_forest(known, truth, config.seed, config.threads).predict(statistics(held)),
        "majority": int(np.bincount(truth).argmax()),
        "ports": table.predict(held, len(corpus.labels)),
        **{f"ports_{how}": table.predict(flows, len(corpus.labels)) for how, flows in changed.items()},
    }


def _said_by_trees(
    known: StoredFlows, truth: Ints, held: StoredFlows, strange: StoredFlows, config: TrainingConfig
) -> dict[str, Any]:
    """As the next a function of its own: an ensemble takes a gigabyte, given back before another one is fitted."""
    trees = fit_trees(columns(known), truth, config.seed, config.threads)
    shares = trees.predict_proba(columns(held))
    unknown = trees.predict_proba(columns(strange)) if len(strange) else np.zeros((0, 1))
    return {
        "trees": trees.classes_[shares.argmax(axis=1)],
        "trees_confidence": shares.max(axis=1),
        "trees_unknown_confidence": unknown.max(axis=1),
    }


def _said_by_context_trees(
    known: StoredFlows, truth: Ints, held: StoredFlows, changed: dict[str, StoredFlows], config: TrainingConfig
) -> dict[str, Any]:
    trees = fit_trees(context_columns(known), truth, config.seed, config.threads)
    asked = {"context_trees": held, **{f"context_trees_{how}": flows for how, flows in changed.items()}}
    return {name: np.asarray(trees.predict(context_columns(flows)), np.int64) for name, flows in asked.items()}
