"""The part of a trace card that tells how far its suspicion can be believed, from the record of what was measured."""

from __future__ import annotations

from tapline.training.evaluation import card
from tapline.training.evaluation.suspicion import PREFIXES, FamilyFigures, NamelessFigures, SuspicionFigures
from tapline.training.evaluation.trace_figures import EARLY_MIN_FLOWS

ASKED = [flows for flows in PREFIXES if flows >= EARLY_MIN_FLOWS]


def render_suspicion(figures: SuspicionFigures) -> str:
    """The section *Suspicion*, as Markdown."""
    return "\n\n".join(
        (
            "## Suspicion",
            _method(figures),
            _sources(figures),
            _families(figures),
            _laboratories(figures),
            *([_nameless(figures.nameless)] if figures.nameless else []),
            _time(figures),
        )
    )


def _method(figures: SuspicionFigures) -> str:
    return (
        "A trace is *suspicious* where all labels together have a share of at least "
        f"{figures.threshold:.4f}, whatever the single label. Malware and benign traffic were recorded in different "
        "laboratories and years, so a model could tell them apart by that alone. Therefore every source of benign "
        "traffic was left out of training once, whole, and false alarms were counted in it; at the threshold of a row "
        f"no more than {1000 * figures.false_alarms:g} of 1,000 traces of any *other* source, each by a model that had "
        "not learned it, are called suspicious; the checkpoint's is that of all sources. The trees on header fields "
        "learned the same, and have thresholds of their own."
    )


def _sources(figures: SuspicionFigures) -> str:
    names = [
        "left out", "traces", "false alarms per 1,000", "early ones with them", "trees",
        "malware never learned called suspicious", "trees",
        "AUROC", "trees",
    ]  # fmt: skip
    rows = [
        [
            row.source,
            str(row.traces),
            f"{1000 * row.alarms:.1f}",
            "" if row.early_alarms is None else f"{1000 * row.early_alarms:.1f}",
            f"{1000 * row.alarms_trees:.1f}",
            f"{row.caught:.1%}",
            f"{row.caught_trees:.1%}",
            f"{row.auroc:.3f}",
            f"{row.auroc_trees:.3f}",
        ]
        for row in figures.sources
    ]
    early = (
        f"\n\n*Early ones with them*: called suspicious at the end, or while the window was open, asked from "
        f"{EARLY_MIN_FLOWS} flows on, when {', '.join(map(str, ASKED))} flows had been seen."
    )
    return card.table(names, rows) + early


def _families(figures: SuspicionFigures) -> str:
    return (
        "Families that were never learned, at the checkpoint's threshold, the mean over the models of the table "
        "above:\n\n"
        f"{_table(figures.never_learned)}\n\n"
        "Labels of this checkpoint, each by a model that did not learn it but all others and the whole background:\n\n"
        f"{_table(figures.families)}"
    )


def _table(rows: list[FamilyFigures]) -> str:
    return card.table(
        ["label", "traces", "called suspicious"], [[row.label, str(row.traces), f"{row.caught:.0%}"] for row in rows]
    )


def _laboratories(figures: SuspicionFigures) -> str:
    if not figures.laboratories:
        return "No laboratory was left out."
    rows = [
        [row.laboratory, str(row.malicious), str(row.benign), f"{row.macro_f1:.3f}", f"{row.macro_f1_trees:.3f}"]
        for row in figures.laboratories
    ]
    names = ["laboratory", "malicious traces", "benign traces", "macro-F1, suspicious or not", "trees"]
    return (
        "Captures of one laboratory, malicious and benign, by a model that learned none of either:\n\n"
        f"{card.table(names, rows)}"
    )


def _nameless(figures: NamelessFigures) -> str:
    return (
        f"A suspicious trace bears a label from confidence {figures.threshold:.3f} on; below it the verdict says "
        "*unknown*. The threshold is where labels that were left out one by one are told best from held-out traces of "
        f"learned ones: {figures.left_out:.0%} of the former and {figures.learned:.0%} of the latter lie below; so do "
        f"{figures.never_learned:.0%} of the traces of families that were never learned, which chose nothing. "
        "The checkpoint has this threshold in the place of the one above."
    )


def _time(figures: SuspicionFigures) -> str:
    seconds = figures.median_seconds
    time = (
        ""
        if seconds is None
        else f"\n\nOf those that are, half are so {seconds:.0f} s after their first flow or sooner."
    )
    shares = {flows: f"{share:.0%}" for flows, share in figures.by_flows.items()}
    return (
        f"Of the learned labels {figures.learned:.0%} of the held-out traces are called suspicious; after so many "
        "flows:\n\n"
        f"{card.table(['flows', *shares], [['called suspicious', *shares.values()]])}{time}"
    )
