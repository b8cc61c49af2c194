"""What was said of each labelled flow or trace, a row for each, as a CSV table that people read beside the report."""

from __future__ import annotations

import csv
from pathlib import Path

from tapline.models.foreign_text import clean
from tapline.training.checking.check_figures import Known
from tapline.training.checking.said import NAMED_BY
from tapline.training.loop.run_files import whole

VERDICT_TABLE = "verdicts.csv"


def write_verdict_table(directory: Path, known: Known) -> None:
    """Write `VERDICT_TABLE`: what names the thing, its label as `truth`, the verdict, and the word of each tool.

    `right` is whether `nearest` is the label, empty for labels that the checkpoint never learned.
    """
    said = known.said
    tools = [clean(f"{tool.name} says") for tool in said.tools]
    head = ["capture", *NAMED_BY[said.unit], "truth", "label", "nearest", "right", "confidence", "unknown", *tools]
    with whole(directory / VERDICT_TABLE) as staging, staging.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row, verdict in enumerate(said.verdicts):
            truth = said.labels[row]
            right = verdict.nearest == truth if known.is_known[row] else ""
            words = [clean(tool.words[row] or "") for tool in said.tools]
            writer.writerow(
                [clean(said.captures[row]), *said.names[row], clean(truth), verdict.label, verdict.nearest, right,
                 verdict.confidence, verdict.unknown, *words]
            )  # fmt: skip
