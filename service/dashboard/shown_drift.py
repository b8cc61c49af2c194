"""What drift is, for people: what moved, by how much, and what that means."""

from __future__ import annotations

from tapline.service.dashboard.frame import Cell, toned
from tapline.service.drift.distances import NEVER
from tapline.service.drift.drift_monitor import MIN_DAYS
from tapline.service.drift.model_drift import MIN_VERDICTS, DriftMeasure, Measure, ModelDrift

DRIFT_COLUMNS = ("compared with", "distance", "limit", "what moved")

MEANINGS: dict[Measure, str] = {
    "labels": "Other traffic than it was: look under Flows or Hosts for what came or went. The model may be as right "
    "as ever.",
    "confidence": "The model is as often right as its confidence says: one that is less sure is wrong more often.",
    "unknown": "More unknown: traffic that the model never learned. If it stays, train on captures of it.",
    "embedding": "What flows or hosts look like to the network has changed, whatever it calls them: verdicts may "
    "be worth less than the model's figures say.",
}


def drift_rows(drift: ModelDrift) -> list[list[Cell]]:
    """A row for each comparison."""
    return [_row(each) for each in drift.measures]


def drift_meanings(drift: ModelDrift) -> list[str]:
    """What it means, a sentence or two for each measure that moved."""
    moved = {each.measure: f"{each.measure.capitalize()}: {MEANINGS[each.measure]}" for each in drift.drifted}
    found = list(moved.values())
    if any(each.limit >= NEVER for each in drift.measures):
        found.append(
            "What has no limit is for information: the model was made from captures, which no network is like."
        )
    return found or ["All of it is within what is usual."]


def drift_state(drift: ModelDrift | None, problem: str | None) -> str:
    """What is to be said before the comparisons."""
    if problem is not None:
        return f"Not compared: {problem}."
    if drift is None:
        return f"Nothing to compare yet: no verdict since the start, of the {MIN_VERDICTS} that are wanted."
    if drift.verdicts < MIN_VERDICTS:
        return f"Nothing to compare yet: {drift.verdicts} of {MIN_VERDICTS} verdicts in the last 24 hours."
    said = f"{drift.verdicts:,} verdicts in the last 24 hours."
    if not any(each.against == "last week" for each in drift.measures):
        said += f" They are compared with last week once {MIN_DAYS} days of it had as many."
    if not any(each.against == "baseline" for each in drift.measures):
        said += " The checkpoint has no baseline: `tapline models baseline` makes one."
    return said


def _row(each: DriftMeasure) -> list[Cell]:
    limit = "-" if each.limit >= NEVER else f"{each.limit:.2f}"
    return [
        each.against,
        toned(f"{each.distance:.2f}", "caution" if each.drifted else ""),
        limit,
        each.reason,
    ]
