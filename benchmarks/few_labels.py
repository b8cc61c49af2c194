"""Does pre-training help? MM4flow from pre-trained encoders, from scratch, and the tree ensemble, with few labels.

    python benchmarks/few_labels.py FEATURES --split SPLIT --encoders DIR [--labels 1 5 10 50 0] [--seeds 3]

So many labelled flows of each class (0: all) are drawn from the part of the split for training, from as many captures
as possible; every model learns from the same ones and is measured on validation and test together, on classes with five
flows there. `--encoders` must have been pre-trained without these (`tapline-train pretrain --split SPLIT`). Everything
else is alike on both sides: `--draws` flows seen in an epoch, `--epochs`, learning rate, seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hardware import describe, report
from numpy.typing import NDArray
from torch import Tensor

from tapline.models.context import ContextTerms
from tapline.training.data.batches import TrainingSet, draw_weights
from tapline.training.data.corpus import Corpus, make_corpus
from tapline.training.data.partition import read_partition
from tapline.training.data.store import StoredSamples, open_samples
from tapline.training.evaluation.flow_folds import network_of
from tapline.training.evaluation.rivals import columns, fit_trees
from tapline.training.flows.context_counts import learn_context
from tapline.training.flows.finetune import fit, predict
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.new_networks import new_model
from tapline.training.loop.run_files import read_encoders
from tapline.training.loop.scores import Predictions, interval, macro_f1, macro_f1_draws

MIN_FLOWS = 5


@dataclass(frozen=True)
class Setting:
    """What every model is given: the labels, flows to learn from and to be measured on, how long to train."""

    corpus: Corpus
    train: StoredSamples
    held: StoredSamples
    config: TrainingConfig


def draw(samples: StoredSamples, per_class: int, seed: int) -> StoredSamples:
    """So many flows of each class (0: all), its captures taking turns."""
    if not per_class:
        return samples
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(samples.labels):
        waiting: defaultdict[int, list[int]] = defaultdict(list)
        for row in rng.permutation(np.flatnonzero(samples.labels == label)).tolist():
            waiting[int(samples.captures[row])].append(row)
        turns = sorted((place, row) for rows in waiting.values() for place, row in enumerate(rows))
        firsts = [(place, rng.random(), row) for place, row in turns]
        chosen += [row for _, _, row in sorted(firsts)[:per_class]]
    return samples.take(np.sort(np.array(chosen, np.int64)))


def learn(setting: Setting, some: StoredSamples, seed: int, encoders: Mapping[str, Tensor] | None) -> NDArray[np.int64]:
    """What MM4flow says of the held-out flows after learning from some."""
    config = setting.config
    weights = draw_weights(some.labels, some.captures, config.class_power, config.capture_power)
    model = new_model(network_of(setting.corpus, config, background=False), seed, encoders)
    data, n_label = TrainingSet(some.flows, setting.corpus.truth(some), weights), len(setting.corpus.labels)
    model, held = fit(model, data, config), setting.held.flows
    barred = ContextTerms(learn_context(data, 0.0), n_label, n_label).transports(held)
    return np.asarray((predict(model, held, config.features) + barred).argmax(1))


def measure(setting: Setting, per_class: int, seeds: int, encoders: Mapping[str, Tensor]) -> dict[str, object]:
    """One row: macro-F1 of the three models, the mean over seeds, and the gain of pre-training with its interval."""
    truth, captures = setting.corpus.truth(setting.held), setting.held.captures_of()
    classes = len(setting.corpus.labels)
    said: defaultdict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for seed in range(seeds):
        some = draw(setting.train, per_class, seed)
        said["pretrained"].append(learn(setting, some, seed, encoders))
        said["scratch"].append(learn(setting, some, seed, None))
        trees = fit_trees(columns(some.flows), setting.corpus.truth(some), seed)
        said["trees"].append(trees.classes_[trees.predict_proba(columns(setting.held.flows)).argmax(1)])
    draws = {
        name: np.mean([macro_f1_draws([Predictions(truth, p, captures)], classes, MIN_FLOWS) for p in each], axis=0)
        for name, each in said.items()
    }
    row: dict[str, object] = {"labels": per_class, "flows": len(some), "seeds": seeds}
    for name, each in said.items():
        scores = [macro_f1(truth, p, classes, MIN_FLOWS) for p in each]
        row[name] = {"macro_f1": float(np.mean(scores)), "seeds": scores}
    gain = interval(draws["pretrained"] - draws["scratch"])
    row["gain_interval"] = [gain.low, gain.high]
    return row


def main() -> None:
    """Measure every number of labels, one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--encoders", type=Path, action="append", required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 5, 10, 50, 0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--draws", type=int, default=1024)
    parser.add_argument("--min-captures", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    with tempfile.TemporaryDirectory() as scratch:
        corpus = make_corpus(open_samples([given.features], Path(scratch)), given.min_captures)
    known = corpus.known()
    parts = read_partition(given.split).parts(known)
    config = TrainingConfig(epochs=given.epochs, draws=given.draws)
    setting = Setting(corpus, known.take(parts == 0), known.take(parts > 0), config)
    measured = np.bincount(corpus.truth(setting.held), minlength=len(corpus.labels)) >= MIN_FLOWS
    print(f"{len(setting.train)} flows to learn from, {len(setting.held)} held out, {measured.sum()} classes measured")
    encoders = read_encoders(given.encoders)
    assert encoders is not None
    rows = []
    for per_class in given.labels:
        rows.append(row := measure(setting, per_class, given.seeds, encoders))
        pre, scratch_, trees = (row[name]["macro_f1"] for name in ("pretrained", "scratch", "trees"))
        low, high = row["gain_interval"]
        report(
            f"{per_class or 'all'} labels a class ({row['flows']} flows)",
            f"pre-trained {pre:.3f}, from scratch {scratch_:.3f} (gain {pre - scratch_:+.3f}, 95 %: {low:+.3f} to "
            f"{high:+.3f}), trees {trees:.3f}",
        )
        if given.out:
            given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
