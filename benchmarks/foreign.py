"""How good is a checkpoint on captures of others? It and a table of the server ports that it learned from.

    python benchmarks/foreign.py FEATURES... --learned FEATURES [--checkpoint NAME or DIR] [--corpora] [--ports off]

FEATURES were written by `tapline-train extract`, `--learned` are those that the checkpoint was trained on: the port
table learns from them, and flows that the model cannot tell from one of theirs are not measured. Known are the flows of
its labels; macro-F1 counts the classes with ten flows or more, intervals are 95 % of a bootstrap over captures.
`--corpora` adds a row for each corpus with a hundred known flows, `--ports off` reads no ports in verdicts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from hardware import describe, report
from numpy.typing import NDArray

from tapline.models.encode import encode
from tapline.models.verdict import context_terms, flow_probabilities
from tapline.service.engines.engine import Engine
from tapline.service.engines.loading import load_engine
from tapline.service.inference.repository import shipped_checkpoint
from tapline.training.data.corpus import Corpus
from tapline.training.data.split import BACKGROUND
from tapline.training.data.store import StoredSamples, chunks, open_samples
from tapline.training.evaluation.confident_mistakes import CONFIDENT
from tapline.training.evaluation.flow_measured import MIN_POOLED_FLOWS, PORTS
from tapline.training.evaluation.measured import Measured
from tapline.training.evaluation.rivals import PortTable
from tapline.training.loop.scores import interval

MIN_CORPUS_FLOWS = 100
BATCH_FLOWS = 512


def shares_of(engine: Engine, samples: StoredSamples, *, ports: bool) -> NDArray[np.float64]:
    """What the checkpoint says of every flow, with context, float64 [n, labels]."""
    checkpoint, terms = engine.checkpoint, context_terms(engine.checkpoint)
    shares = [np.zeros((0, len(checkpoint.labels)))]
    for flows in chunks(samples.flows, BATCH_FLOWS):
        logits = engine.run(encode(flows, checkpoint.features)).logits
        shares.append(flow_probabilities(logits, flows, checkpoint, terms, ports=ports))
    return np.concatenate(shares)


def measured(engine: Engine, samples: StoredSamples, table: PortTable, *, ports: bool) -> Measured:
    """What checkpoint and table say of labelled flows, known ones and others."""
    checkpoint = engine.checkpoint
    is_known = samples.with_label(checkpoint.labels)
    known, strange = samples.take(is_known), samples.take(~is_known & ~samples.with_label([BACKGROUND]))
    corpus = Corpus(samples, checkpoint.labels, [])
    return Measured(
        title=checkpoint.name,
        unit="flow",
        labels=checkpoint.labels,
        truth=corpus.truth(known),
        probabilities=shares_of(engine, known, ports=ports),
        captures=known.captures_of(),
        min_support=MIN_POOLED_FLOWS,
        threshold=checkpoint.rule(ports=ports).threshold,
        unknown_confidence=shares_of(engine, strange, ports=ports).max(axis=1, initial=0.0),
        rivals={PORTS: table.predict(known.flows, len(checkpoint.labels))},
    )


def row(name: str, found: Measured) -> str:
    said, ports = found.predicted, found.rivals[PORTS]
    draws, of_ports = found.draws(said), found.draws(ports)
    own, table, gain = interval(draws), interval(of_ports), interval(draws - of_ports)
    strange = found.unknown_confidence
    confident = f"{(strange > CONFIDENT).mean():.1%} of {len(strange)}" if len(strange) else "-"
    return (
        f"{name[:36]:36} {len(found.truth):6} {found.macro_f1(said):6.3f} ({own.low:.3f} to {own.high:.3f}) "
        f"{found.macro_f1(ports):6.3f} ({table.low:.3f} to {table.high:.3f})  {gain.low:+.3f} to {gain.high:+.3f} "
        f"{found.calibration_error():6.3f}  {confident}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, nargs="+")
    parser.add_argument("--learned", type=Path, action="append", required=True)
    parser.add_argument("--checkpoint", default="flow-protocols")
    parser.add_argument("--corpora", action="store_true")
    parser.add_argument("--ports", choices=("on", "off"), default="on")
    options = parser.parse_args()
    directory, ports = Path(options.checkpoint), options.ports == "on"
    engine = load_engine("onnx", directory if directory.is_dir() else shipped_checkpoint(options.checkpoint))
    checkpoint, read = engine.checkpoint, engine.checkpoint.features
    with tempfile.TemporaryDirectory() as folder:
        learned = open_samples(options.learned, Path(folder))
        learned = learned.take(learned.with_label(checkpoint.labels))
        table = PortTable(learned.flows, Corpus(learned, checkpoint.labels, []).truth(learned), learned.captures)
        seen = learned.flows.kinds(read.payload_lengths, read.content_bytes)
        print(describe())
        print(
            f"{checkpoint.name} {checkpoint.version}: known flows, macro-F1, of the port table, gain on it, calibration"
        )
        print(f"error, and how many flows of labels never learned got one with a confidence above {CONFIDENT}")
        for features in options.features:
            samples = open_samples([features], Path(folder))
            kinds = samples.flows.kinds(read.payload_lengths, read.content_bytes)
            samples = samples.take((samples.labels >= 0) & ~np.isin(kinds, seen))
            whole = measured(engine, samples, table, ports=ports)
            print(row(features.name, whole))
            report(
                f"{checkpoint.name} on {len(whole.truth)} flows of others, {features.name}, beside a port table",
                f"macro-F1 **{whole.macro_f1(whole.predicted):.3f}** beside {whole.macro_f1(whole.rivals[PORTS]):.3f}",
            )
            of = samples.corpora()
            for number in np.unique(of) if options.corpora else ():
                part = samples.take(of == number)
                if part.with_label(checkpoint.labels).sum() >= MIN_CORPUS_FLOWS:
                    corpus = part.captures_of()[0].partition("/")[0]
                    print(row(f"  {corpus}", measured(engine, part, table, ports=ports)))


if __name__ == "__main__":
    main()
