"""The header of a model card: the YAML front matter that a Hub reads (license, tags, library, measured figures), made
from the manifest; and the headline figure of a checkpoint's own evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from tapline.models.checkpoint import CARD, ONNX, TRACE_ONNX, AnyCheckpoint

MAX_CARD_BYTES = 1 << 20
LIBRARY = "tapline"
_HEADER = re.compile(r"\A---\r?\n.*?\r?\n---\r?\n\s*", re.DOTALL)
_KINDS = {"mm4flow": "network flow classification", "tracegram": "network trace classification"}


class Headline(NamedTuple):
    """Macro-F1 of a cross-validation, and the 95 % interval around it."""

    value: float
    low: float
    high: float


def headline_of(metrics: dict[str, Any]) -> Headline | None:
    """The headline of a checkpoint's own evaluation, None without; a foreign checkpoint may hold anything."""
    try:
        found = metrics["cross_validation"]
        if "figures" in found:
            figures = found["figures"]
            value, interval = figures["macro_f1"], figures["macro_f1_interval"]
        else:
            figures = next(each for each in found["variants"] if each["name"] == found["main"])["all_classes"]
            value, interval = figures["macro_f1"], figures["interval"]
        return Headline(float(value), float(interval["low"]), float(interval["high"]))
    except (KeyError, TypeError, ValueError, StopIteration):
        return None


def read_card(directory: Path) -> str:
    """The card of a checkpoint as a reader sees it, in Markdown without its header, at most `MAX_CARD_BYTES` of it.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    with (directory / CARD).open("rb") as file:
        return without_header(file.read(MAX_CARD_BYTES).decode(errors="replace"))


def without_header(text: str) -> str:
    """A card without its header, for readers that show it."""
    return _HEADER.sub("", text, count=1)


def with_header(text: str, checkpoint: AnyCheckpoint, licence: str | None = None) -> str:
    """A card with a header, the one that it has where it has one and no `licence` is given."""
    if licence is None and _HEADER.match(text):
        return text
    return card_header(checkpoint, licence) + "\n" + without_header(text)


def card_header(checkpoint: AnyCheckpoint, licence: str | None = None) -> str:
    """The front matter of a checkpoint's card; texts are in JSON's quotes, which YAML has too."""
    tags = ["network-traffic", "traffic-classification", checkpoint.kind, "safetensors"]
    tags += ["onnx"] if checkpoint.files.keys() & {ONNX, TRACE_ONNX} or not checkpoint.files else []
    lines = ["---", f"library_name: {LIBRARY}"]
    lines += [f"license: {json.dumps(licence)}"] if licence else []
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    headline = headline_of(checkpoint.metrics)
    if headline is not None:
        what = f"macro-F1, {headline.low:.3f} to {headline.high:.3f} (95 %)"
        lines += [
            "model-index:",
            f"- name: {json.dumps(f'{checkpoint.name} {checkpoint.version}')}",
            "  results:",
            f"  - task: {{type: other, name: {json.dumps(_KINDS[checkpoint.kind])}}}",
            '    dataset: {type: captures, name: "captures left out of training, cross-validated"}',
            "    metrics:",
            f"    - {{type: f1, value: {headline.value:.4f}, name: {json.dumps(what)}}}",
        ]
    return "\n".join([*lines, "---", ""])
