"""From logits to verdicts: context, calibration, the unknown rule, the alternatives; every path gives verdicts through
here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import UNKNOWN as UNKNOWN
from tapline.models.checkpoint import Calibration, Checkpoint, Unknown
from tapline.models.context import ContextTerms, SaidByPort
from tapline.models.flow import Flow

ALTERNATIVES = 3
"""Labels beside the first that a verdict names."""

UNEXPECTED_MIN_CONFIDENCE = 0.9
"""A port is unexpected only where the verdict's confidence is at least this, and its label is not the port's."""

UNEXPECTED_MIN_PORT_SHARE = 0.5
"""And at least this share of the captures with the port hold the label that the port says."""

UNEXPECTED_MAX_LABEL_SHARE = 0.05
"""And less than this share of them hold the verdict's label."""

CONFIDENCE_DIGITS = 6
"""Confidences are rounded to so many."""

SUSPICION_DIGITS = 6
"""Suspicion is rounded to so many before it is compared with its threshold, and shown."""


class Alternative(msgspec.Struct, frozen=True, gc=False):
    """A label that was considered, with its calibrated confidence."""

    label: str
    confidence: float


class Verdict(msgspec.Struct, frozen=True, gc=False, omit_defaults=False):
    """What a model says of a flow or a trace.

    `label` is what it says: `UNKNOWN` where `unknown` is True, and the model says that it has not learned this kind of
    traffic. `nearest` is the nearest label that it knows, always; `confidence`, calibrated, is that in `nearest`.
    `final` is False for a flow that still lives.

    Of flows, where the checkpoint knows ports: `port_label` is what the port alone would have said, None where it says
    nothing; `unexpected_port` is True where label and port disagree and both are sure, as of SSH on 443. Where it has
    a student, `by_student` is True of what that answered, False of what the whole network did. `scores` are all logits
    of the network by label, before any context, where asked for.
    """

    label: str
    nearest: str
    confidence: float
    unknown: bool
    alternatives: list[Alternative]
    model: str
    version: str
    final: bool = True
    port_label: str | msgspec.UnsetType | None = msgspec.UNSET
    unexpected_port: bool | msgspec.UnsetType = msgspec.UNSET
    by_student: bool | msgspec.UnsetType = msgspec.UNSET
    scores: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


def called_unknown(verdict: Verdict) -> Verdict:
    """The verdict, unknown for a reason of the caller's."""
    return msgspec.structs.replace(verdict, label=UNKNOWN, unknown=True)


class Judge(Protocol):
    """What of a checkpoint, of flows or of traces, makes verdicts of its logits."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def version(self) -> str:
        """Its version."""
        ...

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the logits."""
        ...

    @property
    def calibration(self) -> Calibration:
        """How logits become confidence."""
        ...

    @property
    def unknown(self) -> Unknown:
        """When a verdict says *unknown*."""
        ...


def probabilities(logits: NDArray[np.float32], checkpoint: Judge) -> NDArray[np.float64]:
    """Calibrated probabilities of the labels, float64 [n, labels], of finite logits float32 [n, classes].

    The background class, where there is one, takes its share first: the labels then add up to less than 1.
    """
    return _shares(logits, checkpoint.calibration.temperature)[:, : len(checkpoint.labels)]


def verdicts(logits: NDArray[np.float32], checkpoint: Judge, *, with_scores: bool = False) -> list[Verdict | None]:
    """One verdict for each row of logits float32 [n, classes]; None where one of them is no finite number."""
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    kept = logits[finite]
    thresholds = [checkpoint.unknown.threshold] * len(kept)
    judged = _verdicts(probabilities(kept, checkpoint), thresholds, checkpoint, kept if with_scores else None)
    return _in_place(judged, finite)


def suspicions(logits: NDArray[np.float32], checkpoint: Judge) -> NDArray[np.float64]:
    """The calibrated probability of any label, rounded, float64 [n]: what the background class leaves of 1.

    For finite logits float32 [n, classes] of a checkpoint whose labels are all of a malicious kind
    (`models.checkpoint.Suspicion`).
    """
    return np.asarray(probabilities(logits, checkpoint).sum(axis=1).round(SUSPICION_DIGITS))


def context_terms(checkpoint: Checkpoint) -> ContextTerms | None:
    """The context of a checkpoint made ready for flows, once for all of them; None where it has none."""
    if checkpoint.context is None:
        return None
    return ContextTerms(checkpoint.context, len(checkpoint.labels), checkpoint.network.n_class)


def flow_probabilities(
    logits: NDArray[np.float32],
    flows: Sequence[Flow],
    checkpoint: Checkpoint,
    terms: ContextTerms | None,
    *,
    ports: bool | Sequence[bool] = True,
) -> NDArray[np.float64]:
    """As `probabilities` of the network's logits of n flows, in the flows' context.

    `terms` are `context_terms` of the checkpoint; `ports` says of all flows, or of each, whether their ports are read.
    """
    if terms is None:
        return probabilities(logits, checkpoint)
    with_ports, without = checkpoint.rule(ports=True), checkpoint.rule(ports=False)
    reads = np.broadcast_to(np.asarray(ports, np.bool_), len(flows))[:, np.newaxis]  # [n, 1]
    added = terms.transports(flows)
    if reads.any():
        added += np.where(reads, terms.ports(flows), np.float32(0))
    temperatures = np.where(reads, with_ports.temperature, without.temperature)
    return _shares(logits + added, temperatures)[:, : len(checkpoint.labels)]


def flow_verdicts(
    logits: NDArray[np.float32],
    flows: Sequence[Flow],
    checkpoint: Checkpoint,
    terms: ContextTerms | None,
    *,
    ports: bool | Sequence[bool] = True,
    with_scores: bool = False,
) -> list[Verdict | None]:
    """As `verdicts` of the network's logits of n flows, in the flows' context; arguments as of `flow_probabilities`.

    Where the checkpoint has a prior of ports each verdict says what the port alone would have said, also where ports
    are not read.
    """
    if terms is None:
        return verdicts(logits, checkpoint, with_scores=with_scores)
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    reads = np.broadcast_to(np.asarray(ports, np.bool_), len(flows))[finite].tolist()
    kept = logits[finite]
    kept_flows = [flow for flow, is_finite in zip(flows, finite.tolist(), strict=True) if is_finite]
    with_ports, without = checkpoint.rule(ports=True), checkpoint.rule(ports=False)
    judged = _verdicts(
        flow_probabilities(kept, kept_flows, checkpoint, terms, ports=reads),
        [(with_ports if read else without).threshold for read in reads],
        checkpoint,
        kept if with_scores else None,
        [terms.said_by_port(flow) for flow in kept_flows] if checkpoint.has_ports else None,
    )
    return _in_place(judged, finite)


def _shares(logits: NDArray[np.float32], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the classes, float64 [n, classes]; `temperature` of all rows, or of each as [n, 1]."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _in_place(judged: list[Verdict], finite: NDArray[np.bool_]) -> list[Verdict | None]:
    """The verdicts of rows that are finite, each in the place of its row, None in the others."""
    rest = iter(judged)
    return [next(rest) if is_finite else None for is_finite in finite.tolist()]


def _verdicts(
    shares: NDArray[np.float64],
    thresholds: Sequence[float],
    checkpoint: Judge,
    scores: NDArray[np.float32] | None,
    said: Sequence[SaidByPort | None] | None = None,
) -> list[Verdict]:
    """A verdict for each row of shares float64 [n, labels]; `said`: what the ports say, None where none are known."""
    order = np.argsort(-shares, axis=1, kind="stable")[:, : ALTERNATIVES + 1]
    ranked = np.take_along_axis(shares, order, axis=1).round(CONFIDENCE_DIGITS).tolist()
    labels, model, version = checkpoint.labels, checkpoint.name, checkpoint.version
    found = []
    for row, (indices, confidences) in enumerate(zip(order.tolist(), ranked, strict=True)):
        nearest, *others = [labels[index] for index in indices]
        confidence = confidences[0]
        unknown = confidence < thresholds[row]
        port_label: str | msgspec.UnsetType | None = msgspec.UNSET
        is_unexpected: bool | msgspec.UnsetType = msgspec.UNSET
        if said is not None:
            port = said[row]
            port_label = None if port is None else labels[port.label]
            is_unexpected = port is not None and not unknown and _is_unexpected(confidence, indices[0], port)
        found.append(
            Verdict(
                UNKNOWN if unknown else nearest,
                nearest,
                confidence,
                unknown,
                list(map(Alternative, others, confidences[1:])),
                model,
                version,
                port_label=port_label,
                unexpected_port=is_unexpected,
                scores=msgspec.UNSET if scores is None else dict(zip(labels, scores[row].tolist(), strict=False)),
            )
        )
    return found


def _is_unexpected(confidence: float, label: int, port: SaidByPort) -> bool:
    """Whether a label, by its number, and what the port says disagree, and both are sure."""
    return (
        confidence >= UNEXPECTED_MIN_CONFIDENCE
        and label != port.label
        and port.shares[port.label] >= UNEXPECTED_MIN_PORT_SHARE
        and port.shares.get(label, 0.0) < UNEXPECTED_MAX_LABEL_SHARE
    )
