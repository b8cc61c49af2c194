"""A flow that the engine gives no numbers for has no verdict in any form of output, and is accounted for."""

import csv
import io
import json

import numpy as np
import pytest

from tapline.service.command.classify import classify_inputs
from tapline.service.command.console import make_console
from tapline.service.command.output import writer
from tapline.service.inference.classifier import Classifier
from tests.service.command.test_cli import CAPTURE

FAILED = 3


@pytest.fixture
def classifier(engine):
    """An engine that fails on two batches, and gives NaN for the first flows of the one after."""
    run, failed = engine.run, []

    def broken(batch):
        scores = run(batch)
        if len(failed) < FAILED:
            failed.append(True)
            if len(failed) == FAILED:
                scores.logits[:FAILED] = np.nan
            else:
                raise RuntimeError("engine fault")  # halves of the batch are tried again
        return scores

    engine.run = broken
    return Classifier(engine)


def output(classifier, form):
    file = io.StringIO()
    summary = classify_inputs(
        [str(CAPTURE)], "auto", classifier, writer(form, file, 0), make_console(file=io.StringIO())
    )
    assert summary.failed == FAILED
    assert summary.classified + FAILED + summary.without_payload == summary.flows
    return file.getvalue()


def test_json(classifier):
    flows = json.loads(output(classifier, "json"))["flows"]
    assert sum(flow["verdict"] is None for flow in flows) == FAILED
    assert all(0 < flow["verdict"]["confidence"] <= 1 for flow in flows if flow["verdict"])


def test_csv(classifier):
    rows = list(csv.DictReader(io.StringIO(output(classifier, "csv"))))
    assert sum((row["label"], row["confidence"]) == ("", "") for row in rows) == FAILED


def test_table(classifier):
    text = output(classifier, "table")
    assert f"{FAILED} on which the engine failed" in text
    assert "nan" not in text.lower().split()
