"""A cascade on corpora left out: teachers, students and thresholds that learned nothing of what they are measured on.

    python benchmarks/student_folds.py FEATURES... --keep DIR [--epochs 40] [--epochs 100,40,40,40] [--run RUN]
        [--write FOLDER]

Four groups of whole corpora (`GROUPS`, and all others) are left out in turn. Of each fold a flow model is trained anew,
by the settings of `RUN`, or of `finetune`, and distilled as `distil` does: student and thresholds see the fold's
training captures alone, temperature and threshold of *unknown* are fitted on the other folds. Then the whole network
and the cascade say what the flows left out are; those that a model cannot tell from one that it learned from are not
measured. Teachers and students are kept in DIR, and not made twice. `--write` makes a checkpoint of each fold,
`FOLDER/fold/NUMBER`: what the live path is worth on flows of which network, student and thresholds learned nothing is
then what `load.py` measures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from hardware import describe
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from tapline.models.checkpoint import CARD, ONNX, STUDENT, WEIGHTS, Calibration, Checkpoint, Unknown
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.flow import MAX_CONTENT_BYTES, Flow
from tapline.models.mm4flow import Mm4flow
from tapline.models.student import StudentModel, StudentScores, StudentWeights
from tapline.models.verdict import context_terms, flow_probabilities
from tapline.training.data.batches import prefix
from tapline.training.data.corpus import Corpus, make_corpus, make_training_set
from tapline.training.data.split import BACKGROUND, halve_labels
from tapline.training.data.store import open_samples
from tapline.training.distilling.checkpoint_student import write_student
from tapline.training.distilling.distil import (
    Class,
    DistilSettings,
    Taught,
    cross_fitted,
    gated,
    lessons_of,
    own_answers,
    teach,
)
from tapline.training.distilling.lessons import Said, ask
from tapline.training.evaluation.calibration import calibrate, capped_weights
from tapline.training.evaluation.flow_folds import Fold, network_of, train_fold
from tapline.training.evaluation.flow_measured import FALSE_REJECTION, MIN_POOLED_FLOWS
from tapline.training.evaluation.other_ports import forged_ports, random_ports
from tapline.training.export.mm4flow_onnx import mm4flow_graph
from tapline.training.flows.context_counts import learn_context
from tapline.training.flows.flow_record import read_run
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.scores import Predictions, auroc, calibration_error, interval, macro_f1, macro_f1_draws

GROUPS = ("pcap", "zeek-traces", "the-tcpdump-group+tcpdump", "others")
MIN_CAPTURES = 3
CONFIDENT = 0.9

EARLY_PACKETS, EARLY_BYTES = 8, 512
"""After so many payload packets, or content bytes, Zeek publishes a flow early."""


@dataclass
class Left:
    """A fold when all is taught: its checkpoint, not yet calibrated, what is said of flows learned and left out.

    `flows`: those `held`, the same with `random` and `forged` ports, those of them that are published `early` as they
    are then and after their `first` payload packet, and those of protocols never learned, `strange`. `truth` and
    `captures` of each kind.
    """

    fold: Fold
    checkpoint: Checkpoint
    taught: Class
    own: Said
    crossed: StudentScores
    weights: StudentWeights
    truth: dict[str, NDArray[np.int64]]
    captures: dict[str, list[str]]
    network: dict[str, Said]
    student: dict[str, StudentScores]
    flows: dict[str, Sequence[Flow]]


COMPUTED = ("held", "early", "first", "strange")
"""Kinds of flows that differ in more than their ports."""


def folds(corpus: Corpus, config: TrainingConfig) -> Iterator[Fold]:
    """A fold for each group, made as `evaluate --by corpus` makes its own."""
    samples, of = corpus.samples, corpus.samples.corpora()
    names = dict(zip(of.tolist(), (name.partition("/")[0] for name in samples.captures_of()), strict=True))
    place = {number: GROUPS.index(name if name in GROUPS else "others") for number, name in names.items()}
    group = np.array([place[number] for number in of.tolist()])
    kinds = samples.flows.kinds(config.features.payload_lengths, config.features.content_bytes)
    known = samples.with_label(corpus.labels)
    for number, name in enumerate(GROUPS):
        aside = group == number
        background = corpus.background(halve_labels(corpus.rare, number)[0])
        data = make_training_set(corpus, samples.take(~aside), background, config, some_absent=True)
        learned = ~aside & samples.with_label({*corpus.labels, *background})
        never = ~np.isin(samples.labels, samples.labels[learned]) & ~samples.with_label([BACKGROUND])
        strange = aside & ~np.isin(kinds, kinds[learned]) & never
        held = aside & ~np.isin(kinds, kinds[~aside & known]) & np.isin(samples.labels, samples.labels[~aside & known])
        yield Fold(number, data, bool(background), samples.take(held), samples.take(strange), name)


def teacher_of(fold: Fold, corpus: Corpus, config: TrainingConfig, keep: Path) -> Mm4flow:
    """The flow model of a fold."""
    path = keep / f"teacher-{fold.number}.safetensors"
    model = Mm4flow(network_of(corpus, config, background=fold.background))
    if not path.exists():
        model = train_fold(fold, corpus, config, None, lambda _: None)
        save_tensors({name: value.clone().contiguous() for name, value in model.state_dict().items()}, path)
    model.load_state_dict(load_tensors(path))
    return model.eval()


def distilled(fold: Fold, corpus: Corpus, config: TrainingConfig, settings: DistilSettings, keep: Path) -> Left:
    """Teach what is to be taught of a fold, and ask it all."""
    teacher, background = teacher_of(fold, corpus, config, keep), fold.background
    checkpoint = Checkpoint(
        "mm4flow", "fold", str(fold.number), network_of(corpus, config, background=background), corpus.labels,
        config.features, unknown=Unknown(0.0, background), context=learn_context(fold.data, config.port_weight),
    )  # fmt: skip
    taught = Class(list(fold.data.flows), fold.data.captures, fold.data.weights)
    path = keep / f"student-{fold.number}.safetensors"
    if not path.exists():
        lessons = lessons_of(teacher, checkpoint, taught, settings)
        crossed = cross_fitted(checkpoint, taught, lessons, settings)
        own = own_answers(lessons, len(taught.flows))
        kept = {"own_logits": own.logits, "own_embeddings": own.embeddings}
        kept |= {"crossed_logits": crossed.logits, "crossed_embeddings": crossed.embeddings}
        kept |= asdict(teach(lessons, settings))
        save_file({name: np.ascontiguousarray(each) for name, each in kept.items()}, path)
    kept = load_file(path)
    weights = StudentWeights(**{each.name: kept[each.name] for each in fields(StudentWeights)})
    student = StudentModel(settings.network, config.features, weights)
    truth, rng = corpus.truth(fold.held), np.random.default_rng((config.seed, fold.number))
    flows: dict[str, Sequence[Flow]] = {"held": list(fold.held.flows), "strange": list(fold.strange.flows)}
    flows |= {
        "random": list(random_ports(fold.held.flows, rng)),
        "forged": list(forged_ports(fold.held.flows, truth, rng)),
    }
    early = [early_packets(flow) for flow in flows["held"]]
    rows = [row for row, packets in enumerate(early) if packets]
    flows |= {
        "early": [prefix(flows["held"][row], early[row]) for row in rows],
        "first": [prefix(flows["held"][row], 1) for row in rows],
    }
    held = fold.held.captures_of()
    partly = ("early", "first")
    truths = {name: truth[rows] if name in partly else truth for name in flows}
    captures = {name: [held[row] for row in rows] if name in partly else held for name in flows}
    network = {name: ask(teacher, flows[name], config.features) for name in COMPUTED}
    return Left(
        fold, checkpoint, taught, Said(kept["own_logits"], kept["own_embeddings"]),
        StudentScores(kept["crossed_logits"], kept["crossed_embeddings"]), weights, truths, captures, network,
        {name: student.scores(flows[name]) for name in COMPUTED}, flows,
    )  # fmt: skip


def early_packets(flow: Flow) -> int:
    """After how many payload packets a flow is published early, 0 where it ends before; its content is cut as it was
    then. The times of packets are not in the features, so that no flow is published for its age."""
    content = {True: 0, False: 0}
    for number, length in enumerate(flow.payload_lengths, 1):
        content[length > 0] += abs(length)
        if number == EARLY_PACKETS or sum(min(each, MAX_CONTENT_BYTES) for each in content.values()) >= EARLY_BYTES:
            return number
    return 0


def calibrated(left: Left, others: Sequence[Left]) -> Checkpoint:
    """The checkpoint of a fold with temperature and threshold of the other ones, with ports and without."""
    found = []
    for ports in (True, False):
        logits = np.concatenate([in_context(other, ports=ports) for other in others])
        truth = np.concatenate([other.truth["held"] for other in others])
        captures = [capture for other in others for capture in other.captures["held"]]
        weights = capped_weights(captures, truth)
        found.append(calibrate(logits, truth, weights, len(left.checkpoint.labels), FALSE_REJECTION))
    context = left.checkpoint.context
    assert context is not None
    assert context.ports is not None
    prior = msgspec.structs.replace(context.ports, temperature=found[1].temperature, threshold=found[1].threshold)
    return msgspec.structs.replace(
        left.checkpoint,
        calibration=Calibration(found[0].temperature),
        unknown=Unknown(found[0].threshold, left.fold.background),
        context=msgspec.structs.replace(context, ports=prior),
    )


def in_context(left: Left, *, ports: bool) -> NDArray[np.float32]:
    """What the network says of the flows left out, context added, float32 [n, classes]."""
    terms, flows = context_terms(left.checkpoint), left.flows["held"]
    assert terms is not None
    added = terms.transports(flows) + (terms.ports(flows) if ports else 0)
    return np.asarray(left.network["held"].logits + added, np.float32)


@dataclass
class Shares:
    """What is said of flows: shares float64 [n, labels] by network and cascade, who was answered, the threshold of
    *unknown*."""

    network: NDArray[np.float64]
    cascade: NDArray[np.float64]
    answered: NDArray[np.bool_]
    unknown: float

    def said(self, shares: NDArray[np.float64]) -> NDArray[np.int64]:
        """The verdict: a label, or one more than the last."""
        return np.where(shares.max(axis=1) < self.unknown, shares.shape[1], shares.argmax(axis=1))


def shares_of(left: Left, checkpoint: Checkpoint, what: str, threshold: float, *, ports: bool) -> Shares:
    """Of the flows `what`: those with other ports are the ones held with what is said of those."""
    said = what if what in left.network else "held"
    terms, flows = context_terms(checkpoint), left.flows[what]
    network = flow_probabilities(left.network[said].logits, flows, checkpoint, terms, ports=ports)
    student = flow_probabilities(left.student[said].logits, flows, checkpoint, terms, ports=ports)
    answered = student.max(axis=1, initial=0) >= threshold
    cascade = np.where(answered[:, np.newaxis], student, network)
    return Shares(network, cascade, answered, checkpoint.rule(ports=ports).threshold)


def main() -> None:
    """Teach and measure all folds; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--epochs", default="40", help="of all teachers, or of each with commas between them")
    parser.add_argument("--folds", default="0,1,2,3", help="teach these alone, and measure those that are taught")
    parser.add_argument("--run", type=Path, help="a run of `finetune`: all its settings but epochs are the folds' too")
    parser.add_argument("--write", type=Path, help="a folder for the checkpoints of the folds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.keep.mkdir(parents=True, exist_ok=True)
    epochs = [int(each) for each in options.epochs.split(",")] * (1 if "," in options.epochs else len(GROUPS))
    corpus = make_corpus(open_samples(options.features, Path(tempfile.gettempdir())), MIN_CAPTURES)
    wanted = {int(each) for each in options.folds.split(",")}
    config = read_run(options.run).config if options.run else TrainingConfig()
    settings, found = DistilSettings(), []
    for fold in folds(corpus, config):
        if fold.number in wanted:
            of_fold = msgspec.structs.replace(config, epochs=epochs[fold.number])
            found.append(distilled(fold, corpus, of_fold, settings, options.keep))
    print(f"machine    {describe()}; teachers of {options.epochs} epochs; {settings}")
    if len(found) < 2:
        return
    if options.write is not None:
        for left in found:
            write_fold(options.write, left, found, settings, options.keep)
    for ports in (True, False):
        measure(found, settings, ports=ports)


def write_fold(folder: Path, left: Left, found: Sequence[Left], settings: DistilSettings, keep: Path) -> None:
    """Write the checkpoint of a fold, gated and calibrated as it is measured."""
    checkpoint = calibrated(left, [other for other in found if other is not left])
    student, figures = gated(checkpoint, left.taught, left.own, left.crossed, settings)
    checkpoint = msgspec.structs.replace(checkpoint, student=student)
    network = load_file(keep / f"teacher-{left.fold.number}.safetensors")

    def write_files(staging: Path) -> None:
        save_file(network, staging / WEIGHTS)
        onnx.save_model(mm4flow_graph(network, checkpoint.network), staging / ONNX)
        write_student(staging / STUDENT, Taught(left.weights, student, figures))
        (staging / CARD).write_text(f"# fold {left.fold.number}\n", encoding="utf-8")

    write_checkpoint(folder / checkpoint.name / checkpoint.version, checkpoint, write_files)


def measure(found: Sequence[Left], settings: DistilSettings, *, ports: bool) -> None:
    """Print what network and cascade are worth on all folds together, and on each."""
    print(f"\nports {'read' if ports else 'off'}")
    kinds = (
        ("held", "early", "first", "random", "forged", "strange") if ports else ("held", "early", "first", "strange")
    )
    collected: dict[str, list[Shares]] = {kind: [] for kind in kinds}
    print(
        "| left out | flows | gate | answered | same verdict | macro-F1 | cascade | never learned: unknown | cascade | "
        "early | answered | same verdict |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for left in found:
        checkpoint = calibrated(left, [other for other in found if other is not left])
        student, _ = gated(checkpoint, left.taught, left.own, left.crossed, settings)
        threshold = student.threshold if ports else student.threshold_without_ports
        for kind in kinds:
            collected[kind].append(shares_of(left, checkpoint, kind, threshold, ports=ports))
        row(left.fold.corpus, [left], {kind: each[-1:] for kind, each in collected.items()}, f"{threshold:.4f}")
    row("**all**", found, collected, "")
    labels = len(found[0].checkpoint.labels)
    for kind in kinds[:-1]:
        truth = np.concatenate([left.truth[kind] for left in found])
        captures = [capture for left in found for capture in left.captures[kind]]
        network, cascade = (
            np.concatenate([getattr(each, side) for each in collected[kind]]) for side in ("network", "cascade")
        )
        draws = [
            macro_f1_draws([Predictions(truth, part.argmax(1), captures)], labels, MIN_POOLED_FLOWS)
            for part in (network, cascade)
        ]
        f1, f1_cascade = (macro_f1(truth, part.argmax(1), labels, MIN_POOLED_FLOWS) for part in (network, cascade))
        between = interval(draws[1] - draws[0])
        answered, same = agreement(collected[kind])
        print(
            f"{kind}: macro-F1 {f1:.4f}, cascade {f1_cascade:.4f} (difference {f1_cascade - f1:+.4f}, 95 % "
            f"{between.low:+.4f} to {between.high:+.4f}); {answered.mean():.1%} of {len(truth)} answered, the same "
            f"verdict for {same[answered].mean():.2%} of them; accuracy {(network.argmax(1) == truth).mean():.4f}, "
            f"{(cascade.argmax(1) == truth).mean():.4f}; ECE "
            f"{calibration_error(network.max(1), network.argmax(1) == truth):.4f}, "
            f"{calibration_error(cascade.max(1), cascade.argmax(1) == truth):.4f}; known called unknown "
            f"{rejected(collected[kind], 'network'):.1%}, {rejected(collected[kind], 'cascade'):.1%}"
        )
    for side in ("network", "cascade"):
        known, strange = (
            np.concatenate([getattr(e, side).max(1, initial=0) for e in collected[kind]])
            for kind in ("held", "strange")
        )
        print(
            f"never learned, {side}: {len(strange)} flows, called unknown {rejected(collected['strange'], side):.1%}, "
            f"named above {CONFIDENT} {(strange > CONFIDENT).mean():.1%}, AUROC {auroc(known, strange):.4f}; "
            f"answered {np.concatenate([e.answered for e in collected['strange']]).mean():.1%}"
        )


def agreement(parts: Sequence[Shares]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of the flows of some folds: which the student answers, and of which the cascade's verdict is the network's."""
    same = [part.said(part.network) == part.said(part.cascade) for part in parts]
    return np.concatenate([part.answered for part in parts]), np.concatenate(same)


def rejected(parts: Sequence[Shares], side: str) -> float:
    """The share of flows that are called unknown."""
    unknown = [getattr(part, side).max(1, initial=0) < part.unknown for part in parts if len(part.answered)]
    return float(np.concatenate(unknown).mean()) if unknown else float("nan")


def row(name: str, left: Sequence[Left], shares: dict[str, list[Shares]], threshold: str) -> None:
    """A row of the table."""
    truth, labels = np.concatenate([each.truth["held"] for each in left]), len(left[0].checkpoint.labels)
    network, cascade = (np.concatenate([getattr(e, side) for e in shares["held"]]) for side in ("network", "cascade"))
    (answered, same), (answered_early, same_early) = (agreement(shares[kind]) for kind in ("held", "early"))
    f1 = [macro_f1(truth, part.argmax(1), labels, MIN_POOLED_FLOWS) for part in (network, cascade)]
    strange = sum(len(each.answered) for each in shares["strange"])
    unknown = [f"{rejected(shares['strange'], side):.1%}" if strange else "-" for side in ("network", "cascade")]
    print(
        f"| {name} | {len(truth)} | {threshold} | {answered.mean():.1%} | {same[answered].mean():.2%} | {f1[0]:.4f} | "
        f"{f1[1]:.4f} | {unknown[0]} of {strange} | {unknown[1]} | {len(same_early)} | {answered_early.mean():.1%} | "
        f"{same_early[answered_early].mean():.2%} |"
    )


if __name__ == "__main__":
    main()
