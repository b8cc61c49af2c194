"""What other tools say of the flows and traces that a checkpoint was measured on, beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.training.checking.check_record import Disagreement, Side, ToolFigures
from tapline.training.checking.label_names import LabelNames, said
from tapline.training.checking.said import ToolSaid
from tapline.training.evaluation.measured import Measured
from tapline.training.loop.scores import Floats, Interval, Ints, interval

MOST_DISAGREEMENTS = 10
MOST_WORDS = 10


def rival_name(tool: ToolSaid, words: Sequence[str | None]) -> str:
    """What a tool is called where it is measured by its words on all things: silence counts there, which is said."""
    silent = any(word is None or not said(word) for word in words)
    return f"{tool.name}, silence as wrong" if silent else tool.name


def tool_figures(words: Sequence[str | None], tool: ToolSaid, measured: Measured, names: LabelNames) -> ToolFigures:
    """Figures of a tool by its words on the things of known labels, None where it has no row."""
    spoken = np.array([word is not None and said(word) for word in words], np.bool_)
    of_all = measured.rivals[rival_name(tool, words)]
    place = set(measured.labels)
    strange = Counter(word for word in words if word is not None and said(word) and names.of(word) not in place)
    figures = ToolFigures(
        name=tool.name,
        things=len(words),
        with_row=sum(word is not None for word in words),
        said=int(spoken.sum()),
        rows=tool.rows,
        rows_without_thing=tool.rows - tool.malformed - len(tool.account.lines),
        rows_malformed=tool.malformed,
        strange_words=strange.most_common(MOST_WORDS),
        clock_hint=tool.account.clock_hint(),
        macro_f1_of_all=measured.macro_f1(of_all),
    )
    if not spoken.any():
        return figures
    return _beside(figures, _part(measured, spoken), of_all[spoken])


def _part(measured: Measured, rows: NDArray[np.bool_]) -> Measured:
    captures = np.array(measured.captures, np.str_)[rows].tolist()
    truth = measured.truth[rows]
    least = min(measured.min_support, int(np.bincount(truth).max()))
    return replace(
        measured, truth=truth, probabilities=measured.probabilities[rows], captures=captures, min_support=least
    )


def _beside(figures: ToolFigures, part: Measured, tool: Ints) -> ToolFigures:
    """The figures with those of both on the things that the tool says something of."""
    own = part.predicted
    own_draws, tool_draws = part.draws(own), part.draws(tool)
    right, tool_right = own == part.truth, tool == part.truth
    differ = own != tool
    names = [*part.labels, "none of the labels"]
    pairs = Counter(zip(part.truth[differ].tolist(), own[differ].tolist(), tool[differ].tolist(), strict=True))
    return msgspec.structs.replace(
        figures,
        min_support=part.min_support,
        tool=_side(part, tool, tool_draws),
        model=_side(part, own, own_draws),
        gain=part.macro_f1(own) - part.macro_f1(tool),
        gain_interval=_over_captures(part, own_draws - tool_draws),
        only_model_right=int((right & ~tool_right).sum()),
        only_tool_right=int((~right & tool_right).sum()),
        both_wrong=int((~right & ~tool_right & differ).sum()),
        disagreements=[
            Disagreement(names[truth], names[model], names[other], count)
            for (truth, model, other), count in pairs.most_common(MOST_DISAGREEMENTS)
        ],
    )


def _side(part: Measured, predicted: Ints, draws: Floats) -> Side:
    accuracy = float((predicted == part.truth).mean())
    return Side(accuracy, part.macro_f1(predicted), _over_captures(part, draws))


def _over_captures(part: Measured, draws: Floats) -> Interval | None:
    return interval(draws) if len(set(part.captures)) > 1 else None
