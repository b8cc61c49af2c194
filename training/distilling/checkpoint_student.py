"""A flow checkpoint with a student: the same network, files and figures, and beside them what was distilled of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save_file
from safetensors.torch import load

from tapline.models.card_header import with_header, without_header
from tapline.models.checkpoint import CARD, STUDENT, WEIGHTS, Checkpoint, read_checkpoint, read_file
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.mm4flow import Mm4flow
from tapline.models.student_file import read_student
from tapline.training.data.corpus import Corpus, make_training_set
from tapline.training.data.samples import features_of
from tapline.training.data.split import BACKGROUND
from tapline.training.data.store import open_samples
from tapline.training.distilling.distil import Class, DistilSettings, StudentFigures, Taught, distil
from tapline.training.evaluation.calibration import MOST_FLOWS
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.run_files import scratch_folder

SECTION = "## Student"

_LICENCE = re.compile(r'^license: "([^"\n]+)"$', re.MULTILINE)


def distil_checkpoint(
    source: Path,
    features: Sequence[Path],
    out: Path,
    version: str,
    settings: DistilSettings,
    notes: str = "",
    report: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """Write the flow checkpoint at `source` with a student to the directory `out`, as another version.

    The student learns from the labelled flows of `features`, no label read: those that the network learned from.
    `notes` are put into its section of the card.

    Raises:
        CheckpointError: `source` is no whole flow checkpoint, or `out` holds something else.
        TrainingError: there is no labelled flow.
    """
    checkpoint = read_checkpoint(source, needs=(WEIGHTS,))
    kept = {name: read_file(source, checkpoint, name) for name in checkpoint.files if name != STUDENT}
    card = (source / CARD).read_text(encoding="utf-8")
    taught = distil(teacher_of(source, checkpoint), checkpoint, _class_of(checkpoint, features), settings, report)
    figures = {**msgspec.to_builtins(taught.figures), "features": features_of(features)}
    manifest = msgspec.structs.replace(
        checkpoint, version=version, student=taught.student, metrics=checkpoint.metrics | {"student": figures}
    )

    def write_files(folder: Path) -> None:
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        write_student(folder / STUDENT, taught)
        (folder / CARD).write_text(_card(card, checkpoint, manifest, taught.figures, notes), encoding="utf-8")

    written = write_checkpoint(out, manifest, write_files)
    read_student(out, written)
    return written


def teacher_of(directory: Path, checkpoint: Checkpoint) -> Mm4flow:
    """The network of a flow checkpoint.

    Raises:
        CheckpointError: its weights are not the recorded ones.
    """
    teacher = Mm4flow(checkpoint.network)
    teacher.load_state_dict(load(read_file(directory, checkpoint, WEIGHTS)), strict=False)
    return teacher.eval()


def write_student(path: Path, taught: Taught) -> None:
    """Write the weights of a student."""
    save_file({name: np.ascontiguousarray(each) for name, each in asdict(taught.weights).items()}, path)
    path.chmod(0o644)


def _class_of(checkpoint: Checkpoint, features: Sequence[Path]) -> Class:
    """Labelled flows, drawn as `finetune` draws them."""
    samples = open_samples(features, scratch_folder())
    labelled = samples.take(samples.labels >= 0)
    if not len(labelled):
        raise TrainingError("no labelled flow in these features: give those that the checkpoint learned from")
    rare = sorted(labelled.labels_in(labelled.labels) - {BACKGROUND, *checkpoint.labels})
    corpus = Corpus(labelled, checkpoint.labels, rare)
    data = make_training_set(corpus, labelled, corpus.background(rare), TrainingConfig(), some_absent=True)
    return Class(data.flows, data.captures, data.weights)


def _card(text: str, before: Checkpoint, checkpoint: Checkpoint, figures: StudentFigures, notes: str) -> str:
    """The card of `before` for the checkpoint, with a section on the student in the place of an older one."""
    licence = _LICENCE.search(text)
    body = without_header(text).replace(
        f"# {before.name} {before.version}\n", f"# {checkpoint.name} {checkpoint.version}\n", 1
    )
    sections = [part for part in re.split(r"(?m)^(?=## )", body) if not part.startswith(f"{SECTION}\n")]
    place = next(
        (at for at, part in enumerate(sections) if part.startswith("## What it is not good for")), len(sections)
    )
    sections.insert(place, f"{_section(checkpoint, figures, notes)}\n\n")
    return with_header("".join(sections).rstrip() + "\n", checkpoint, licence.group(1) if licence else None)


def _section(checkpoint: Checkpoint, figures: StudentFigures, notes: str) -> str:
    assert checkpoint.student is not None
    network, settings = checkpoint.student.network, figures.settings
    rows = [
        (name, f"{gate.threshold:g}", f"{gate.answered:.1%}", f"{gate.agreement:.2%}")
        for name, gate in (("as they are", figures.gate), ("ports off", figures.gate_without_ports))
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = (
        f"{SECTION}\n\n"
        f"`student.safetensors` answers, in the network's place, the flows that it is sure of; the network answers the "
        f"others and alone says *unknown*. It reads the first {network.content_bytes} content bytes each way and "
        f"{network.payload_lengths} payload lengths (a table of {network.table_width} columns, a layer of "
        f"{network.hidden_width}), in whole numbers, and was taught what the network says of {figures.flows} flows of "
        f"{figures.captures} captures and {settings.copies} disturbed copies of each, {settings.steps} batches of "
        f"{settings.batch_flows}. Context is added to what it says as to what the network says. `--cascade off` leaves "
        "it out.\n\n"
        f"From which confidence on was found on captures that students, {settings.folds} of them, did not learn from: "
        f"there at least {settings.agreement:.1%} of its verdicts are the network's (no capture weighs more "
        f"than {MOST_FLOWS} flows of a class; the network had learned from these captures):\n\n"
        "| | confidence | flows answered | same verdict |\n|---|---|---|---|\n"
        f"{table}\n\n"
        f"The mean square error of its embedding is {figures.embedding_error:.1%} of the embedding's variance."
    )
    return f"{text}\n\n{notes.strip()}" if notes.strip() else text
