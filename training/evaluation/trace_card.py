"""The card of a trace checkpoint, written from records alone. Every number in it was measured by a run.

It speaks of labels; of devices, and of pairs that are the same hardware, where the labels are those of IoT SENTINEL.
"""

from __future__ import annotations

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.trace import SubjectKind
from tapline.models.trace_context import LENGTHS, STACK
from tapline.training.data.labelled_traces import look_alike
from tapline.training.evaluation import card
from tapline.training.evaluation.attribution import MIN_FLOWS
from tapline.training.evaluation.evaluation_record import (
    BackgroundFigures,
    BackgroundShares,
    EarlyFigures,
    Faithfulness,
    TraceEvaluation,
    VariantFigures,
)
from tapline.training.evaluation.suspicion import SuspicionFigures
from tapline.training.evaluation.suspicion_card import render_suspicion
from tapline.training.evaluation.trace_figures import CONFIDENT, FALSE_REJECTION, LONG_FLOWS
from tapline.training.traces.trace_record import TraceRun

WORDS = {
    "main": "**this checkpoint's settings**",
    "trees-header": "trees on header fields",
    "trees-sizes": "trees on packet sizes",
    "no-time": "without time encoding",
    "no-bag": "aggregation alone, without the bag of values",
    "no-background": "without the background class",
    "scratch": "without pre-training",
    "payload": "with 64 content bytes each way, own addresses masked",
    "tracegram": "the published encoder, pre-trained, on packet headers",
    "tracegram-scratch": "the published encoder, without pre-training",
    "frozen": "the embedding of payload lengths of the flow-protocols that shipped then",
}

SUBJECTS: dict[SubjectKind, str] = {
    "mac": "network card",
    "originator": "host, by the address that opens its connections,",
    "responder": "host, by the address that answers its connections,",
    "pair": "pair of hosts, by their addresses,",
}


def render_trace_card(
    manifest: TracegramCheckpoint,
    run: TraceRun,
    figures: TraceEvaluation | None,
    notes: str,
    suspicion: SuspicionFigures | None = None,
) -> str:
    """The card of a trace checkpoint as Markdown; `notes` (data and citation, what it is not good for, commands) is
    put in as it is."""
    measured = _evaluation(figures, alike=look_alike(manifest.labels)) if figures else card.NOT_EVALUATED
    told = render_suspicion(suspicion) if suspicion else ""
    return card.joined_sections(_head(manifest, run), measured, told, notes.strip())


def _head(manifest: TracegramCheckpoint, run: TraceRun) -> str:
    trace = manifest.trace
    window = f"windows of {trace.window_seconds:g} s" if trace.window_seconds else "whole captures"
    by_address = (
        f" Where the link has no MAC, an address stands for the card: so in {run.by_address} of the traces that it was "
        "trained on."
    )
    background = (
        f" {run.background_traces} traces of other traffic were learned as background, a class that is never a "
        "verdict: what it takes, the confidence lacks."
    )
    lone = f"\n\nNot learned, of too few captures: {', '.join(run.not_learned)}."
    return (
        f"# {manifest.name} {manifest.version}\n\n"
        f"Tracegram, {manifest.network.queries} queries, {len(manifest.labels)} labels; {_encoder(manifest)} It takes "
        f"the flows of one {SUBJECTS[trace.subject]} in {window}.{by_address if run.by_address else ''}\n\n"
        f"Trained on {run.traces} traces with {run.flows} flows; phase 1 took {run.seconds / 60:.1f} minutes on "
        f"{run.hardware}.{background if run.background else ''}{lone if run.not_learned else ''}"
    )


def _encoder(manifest: TracegramCheckpoint) -> str:
    """What reads a flow, and what of it."""
    if manifest.mm4flow is not None:
        network, reads = manifest.mm4flow.network, manifest.mm4flow.features
        masked = ", own addresses masked" if reads.mask_addresses else ""
        content = (
            f" and {reads.content_bytes} content bytes each way{masked}" if reads.content_bytes else ", no content"
        )
        return (
            f"its flow encoder is an MM4flow of its own, {network.d_model}/{network.n_layer}/{network.n_head}/"
            f"{network.dim_ff} (width/layers/heads/feed-forward), trained with the rest. It reads the first "
            f"{reads.payload_lengths} payload lengths of a flow{content}; addresses and ports are not read."
        )
    features, sizes = manifest.features, manifest.network
    if sizes.encoder == "context":
        unread = "" if STACK.intersection(sizes.context) else "; what tells a host's system (TTL, windows) is not read"
        return (
            f"it has no flow encoder: it reads {len(sizes.context)} categories of each flow, of transport, ports, "
            f"kinds of addresses, volume, headers, the first {LENGTHS} payload lengths and times{unread}."
        )
    reads_of_packets = "headers and payload, own addresses masked" if features.payload else "headers only, no payload"
    return (
        f"its flow encoder is the published one, {sizes.emb_dim}/{sizes.dim}/{sizes.depth}/{sizes.heads} "
        f"(embedding/width/layers/heads). It reads the first {features.max_tokens} tokens of packet heads of a flow "
        f"({reads_of_packets}; addresses, ports and checksums are zero)."
    )


def _evaluation(figures: TraceEvaluation, *, alike: bool) -> str:
    thing = "device" if alike else "label"
    f1 = {str(point.flows or "all"): point.macro_f1 for point in figures.prefixes}
    error = {str(point.flows or "all"): point.calibration_error for point in figures.prefixes}
    return "\n\n".join(
        (
            "## How good it is",
            _method(figures, alike=alike),
            _variants(figures, thing, alike=alike),
            "### By flows seen\n\n" + card.by_points("flows", f1, error),
            _confidence(figures, thing),
            _attribution(figures.faithfulness),
            "### By class\n\n" + card.by_class(thing, {"traces": "support"}, figures.classes),
            "### Confusions\n\n" + card.confusions(("traces",), figures.mistakes),
        )
    )


def _method(figures: TraceEvaluation, *, alike: bool) -> str:
    remain = figures.folds - len(figures.tuned)
    tuned = " and ".join(str(fold) for fold in figures.tuned)
    chosen = (
        f" Settings were chosen on fold{'s' if len(figures.tuned) > 1 else ''} {tuned}, which every figure below "
        f"leaves out: {figures.traces} traces of {remain} fold{'s' if remain > 1 else ''} remain."
        if figures.tuned
        else ""
    )
    each, unit = ("days", ", all captures of a day in one") if figures.by_day else ("captures", "")
    how = (
        f"Cross-validated: {figures.folds} folds of whole {each}{unit}, one trace for each capture, the {each} of "
        "every label spread evenly."
        if not figures.test
        else f"Measured on the captures whose names begin with {figures.test}, which nothing was learned from, one "
        "trace for each."
    )
    text = (
        f"{how}{chosen} Macro-F1 is over the traces of these folds together; intervals are 95 % "
        "of a bootstrap over captures. The tree ensembles (500 balanced extremely randomised trees on summaries and "
        "counts of header fields, ports by class among them, or on payload lengths) learn from the same captures."
    )
    return f"{text} *Merged*: pairs of devices that are the same hardware count as one." if alike else text


def _variants(figures: TraceEvaluation, thing: str, *, alike: bool) -> str:
    merged = ["merged"] if alike else []
    names = ["", f"captures of each {thing}", "traces", "macro-F1", *merged, "gain on the trees on header fields"]
    rows = [_variant(row, alike=alike, background=figures.background is not None) for row in figures.variants]
    note = "\n\nOnly the first row, and the model of *Unknown* below, learned the background."
    return card.table(names, rows) + (note if figures.background else "")


def _variant(row: VariantFigures, *, alike: bool, background: bool) -> list[str]:
    name, _, few = row.name.rpartition("-")
    kind, captures = (name, few) if few.isdigit() else (row.name, "all")
    if background and row.name != "main" and kind == "main":
        kind = "no-background"
    gain = "" if kind == "trees-header" else f"{row.gain:+.3f} ({card.interval_text(row.gain_interval)})"
    scores = (row.all_classes, row.merged) if alike else (row.all_classes,)
    shown = [f"{score.macro_f1:.3f} ({card.interval_text(score.interval)})" for score in scores]
    return [WORDS.get(kind, kind), captures, str(row.traces), *shown, gain]


def _confidence(figures: TraceEvaluation, thing: str) -> str:
    text = (
        f"Calibration: temperature {figures.temperature:.2f}, expected calibration error "
        f"{figures.calibration_error:.3f}. {_early(figures.early)}\n\n*Unknown*: the threshold "
        f"{figures.threshold:.3f} is set to reject {FALSE_REJECTION:.0%} of known traces and rejects "
        f"{figures.known_rejected:.1%} of those measured"
    )
    background = f"\n\n{_background(figures.background)}" if figures.background else ""
    if figures.unknown is None:
        return f"{text}. It was not measured on {thing}s that were not learned.{background}"
    unknown = figures.unknown
    return (
        f"{text}, and {unknown.rejected:.1%} of {unknown.traces} traces of {thing}s that a model trained without them "
        f"never saw ({', '.join(unknown.devices)}); AUROC of the confidence {unknown.auroc:.3f}.{background}"
    )


def _background(figures: BackgroundFigures) -> str:
    long = f" Of those with {LONG_FLOWS} flows or more, {_strange(figures.long)}." if figures.long else ""
    return (
        f"*Background*: other traffic, {figures.captures} captures. Each fold learned one half of them, another one "
        f"each time, and was measured on the rest: of its traces, {_strange(figures.all)}.{long}"
    )


def _strange(shares: BackgroundShares) -> str:
    return (
        f"{shares.traces} with {shares.verdicts} verdicts, {shares.rejected:.1%} are called unknown, and "
        f"{shares.confident:.1%} get a label with a confidence above {CONFIDENT:g}; AUROC of the confidence against "
        f"that in known traces {shares.auroc:.3f}"
    )


def _early(early: EarlyFigures) -> str:
    rule = f"An open window gets an early verdict from confidence {early.confidence:g} and {early.min_flows} flows on"
    if early.accuracy is None:
        return f"{rule}; no trace measured got one, so that it is not known how often these verdicts are right."
    return f"{rule}: {early.share:.0%} of the traces did, and {early.accuracy:.1%} of these verdicts were right."


def _attribution(held: Faithfulness | None) -> str:
    if held is None:
        return f"Attribution was not measured: no trace has {MIN_FLOWS} flows or more."
    shown = held.difference_interval.low > 0
    doubt = "" if shown else " This does not show that the flows called important matter more than others."
    return (
        f"Attribution: without the {held.removed_share:.0%} of flows that it found most important the confidence in "
        f"the label {_falls(held.top)} on average, without as many random ones {_falls(held.random, held.top)}; "
        f"difference {held.difference:.3f} ({card.interval_text(held.difference_interval)}) over {held.traces} "
        f"{'trace' if held.traces == 1 else 'traces'}.{doubt} "
        "Importance is correlation, not proof of cause."
    )


def _falls(change: float, before: float | None = None) -> str:
    """How a confidence falls or rises; the verb is left out where that of `before` is the same."""
    verb = "" if before is not None and (before < 0) == (change < 0) else "rises " if change < 0 else "falls "
    return f"{verb}by {abs(change):.3f}"
