"""Evaluating a flow checkpoint on a small capture, and tables of labels of it."""

import json

from tests.paths import DATA
from tests.training.command import tapline_train

CAPTURE = DATA / "captures" / "android.pcap"
NFSTREAM = DATA / "tools" / "nfstream-android.csv"


def evaluate(out, *arguments, captures=CAPTURE):
    said = tapline_train("evaluate", "--checkpoint", "flow-protocols", "--captures", captures, "--out", out, *arguments)
    return said, json.loads((out / "evaluation.json").read_text())


def labels_by_uid(path, served, **label_of):
    rows = [f"{row['uid']},{label_of.get(row['nearest'], row['nearest'])}" for row in served]
    path.write_text("uid,label\n" + "\n".join(rows) + "\n")
    return path
