"""The plots of a report, each as an SVG element. What they show comes from `measured`; the page from `page`."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tapline.training.evaluation.measured import Curve, Figures, Measured

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
OWN, RIVAL, WARM = "#1d6fb8", "#9aa5b1", "#d9822b"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tapline",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def _svg(figure: Figure) -> str:
    """The figure as an SVG element that takes the width it is given."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.05)
    element = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', element, count=1)


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure((width, height))
    return figure, figure.subplots()


def models(figures: Figures) -> str:
    """Macro-F1 of every model with its interval."""
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(6.4, 0.55 + 0.42 * len(figures.models))
        for place, model in enumerate(figures.models):
            color = RIVAL if place else OWN
            low, high = model.interval.low, model.interval.high
            axes.plot([low, high], [place, place], color=color, linewidth=2.5, solid_capstyle="round", alpha=0.55)
            axes.plot(model.macro_f1, place, "o", color=color, markersize=8)
            axes.annotate(f"{model.macro_f1:.3f}", (max(high, model.macro_f1), place), (8, -3.5),
                          textcoords="offset points", color=color, fontweight="bold")  # fmt: skip
        axes.set_yticks(range(len(figures.models)), [model.name for model in figures.models])
        axes.set_ylim(len(figures.models) - 0.5, -0.5)
        axes.set_xlim(0, 1.08)
        axes.set_xlabel("macro-F1, 95 % by bootstrap over captures")
        axes.grid(visible=False, axis="y")
        return _svg(figure)


def confusion(measured: Measured) -> str:
    """The confusion matrix, each row as shares of what is truly of that class."""
    there = np.unique(np.concatenate((measured.truth, measured.predicted)))
    size = len(there)
    place = np.zeros(len(measured.labels), np.int64)
    place[there] = np.arange(size)
    table = np.zeros((size, size))
    np.add.at(table, (place[measured.truth], place[measured.predicted]), 1)
    rows = table.sum(1, keepdims=True)
    shares = np.divide(table, rows, out=np.zeros_like(table), where=rows > 0)
    names = [measured.labels[index] for index in there.tolist()]
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        side = min(9.0, 2.4 + 0.235 * size)
        figure, axes = _plot(side, side)
        colors = mpl.colors.LinearSegmentedColormap.from_list("shares", ["#ffffff", "#a9cbe8", OWN, "#0b3a66"])
        axes.imshow(shares, cmap=colors, vmin=0, vmax=1)
        axes.set_xticks(range(size), names, rotation=90, fontsize=7.5)
        axes.set_yticks(range(size), names, fontsize=7.5)
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=GRID, linewidth=0.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        if size <= 40:
            for row, column in zip(*np.nonzero(shares >= 0.05), strict=True):
                share = shares[row, column]
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=5.5,
                          color="white" if share > 0.45 else INK)  # fmt: skip
        axes.set_xlabel("called")
        axes.set_ylabel("is really")
        return _svg(figure)


def reliability(figures: Figures) -> str:
    """Accuracy against confidence, the size of a point by how many it stands for."""
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(4.2, 3.7)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        bins = figures.bins
        for bin_ in bins:
            axes.plot([bin_.confidence] * 2, [bin_.confidence, bin_.accuracy], color=WARM, linewidth=2, alpha=0.6)
        sizes = [24 + 320 * bin_.count / figures.measured for bin_ in bins]
        axes.scatter([b.confidence for b in bins], [b.accuracy for b in bins], s=sizes, color=OWN, zorder=3, alpha=0.9,
                     clip_on=False)  # fmt: skip
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="confidence", ylabel="share that is right")
        axes.text(0.98, 0.05, f"calibration error {figures.calibration_error:.3f}", ha="right", fontweight="bold")
        return _svg(figure)


def risk_coverage(figures: Figures) -> str:
    """How wrong the verdicts are that are kept when the least confident are left out."""
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(4.2, 3.7)
        coverage, risk = [r.coverage for r in figures.risk], [r.risk for r in figures.risk]
        axes.plot(coverage, risk, color=OWN, linewidth=2)
        axes.fill_between(coverage, risk, color=OWN, alpha=0.12)
        axes.axhline(1 - figures.accuracy, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="share of verdicts kept, the most confident first")
        axes.set_ylabel("share of them that is wrong")
        return _svg(figure)


def unknown_roc(measured: Measured, figures: Figures) -> str:
    """Unknown things rejected against known ones rejected, over all thresholds."""
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(4.2, 3.7)
        thresholds = np.unique(np.concatenate((measured.confidence, measured.unknown_confidence)))
        if len(thresholds) > 400:
            thresholds = np.quantile(thresholds, np.linspace(0, 1, 400))
        known, unknown = (
            np.searchsorted(np.sort(values), np.append(thresholds, np.inf)) / len(values)
            for values in (measured.confidence, measured.unknown_confidence)
        )
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(known, unknown, color=OWN, linewidth=2)
        axes.plot(figures.known_rejected, figures.unknown_rejected or 0, "o", color=WARM, markersize=8)
        axes.annotate("threshold", (figures.known_rejected, figures.unknown_rejected or 0), (12, -18),
                      textcoords="offset points", color=WARM, fontweight="bold")  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=f"known {figures.unit}s rejected",
                 ylabel=f"{figures.unit}s of unknown classes rejected")  # fmt: skip
        axes.text(0.96, 0.05, f"AUROC {figures.unknown_auroc:.3f}", ha="right", fontweight="bold")
        return _svg(figure)


def confidences(measured: Measured, figures: Figures) -> str:
    """How confident the model is on what it knows and on what it does not."""
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(4.2, 3.7)
        edges = np.linspace(0, 1, 31)
        sides = ((measured.confidence, OWN, "known"), (measured.unknown_confidence, WARM, "unknown"))
        for confidence, color, name in sides:
            shares = np.histogram(confidence, edges)[0] / len(confidence)
            axes.stairs(shares, edges, color=color, linewidth=1.5)
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.22, label=name)
        axes.axvline(figures.threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel=f"share of the {figures.unit}s")
        axes.legend(loc="upper left")
        return _svg(figure)


def curve(drawn: Curve) -> str:
    """Macro-F1 and mean confidence, and below them the calibration error, against what the model was shown."""
    with mpl.rc_context(_STYLE):
        figure = Figure((5.2, 4.4))
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, 1.0])
        places = range(len(drawn.points))
        _line(top, drawn.macro_f1, OWN, label="macro-F1")
        for place, value in zip(places, drawn.macro_f1, strict=True):
            top.annotate(f"{value:.2f}", (place, value), (0, 8), textcoords="offset points", ha="center", color=OWN)
        if drawn.confidence:
            _line(top, drawn.confidence, INK, label="mean confidence")
            top.legend(loc="lower right")
        top.set_ylim(*_range([*drawn.macro_f1, *drawn.confidence]))
        top.set_ylabel("macro-F1")
        _line(below, drawn.calibration_error, WARM)
        below.set_ylim(0, max(0.1, 1.25 * max(drawn.calibration_error)))
        below.set_ylabel("calibration error")
        below.set_xticks(places, drawn.points)
        below.set_xlabel(drawn.axis)
        return _svg(figure)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """An axis that shows differences and does not exaggerate them: at least a quarter of the scale."""
    low, high = min(values), max(values)
    room = max(0.25, (high - low) * 1.5)
    low = max(0.0, min(low - 0.05, (low + high - room) / 2))
    return low, max(high + 0.06, low + room)


def _line(axes: Axes, values: Sequence[float], color: str, label: str = "") -> None:
    axes.plot(range(len(values)), values, "o-", color=color, linewidth=2, markersize=5, label=label)
