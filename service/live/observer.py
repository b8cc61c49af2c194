"""Who is told of what the live path decides: the terminal, the history, those who listen to the stream."""

from __future__ import annotations

from typing import Protocol

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.traces.live_traces import LiveTraces
from tapline.service.traces.trace_verdict import TraceVerdict


class Observer(Protocol):
    """Is told of every flow and trace verdict, in the event loop, and must not make it wait. This one does nothing."""

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """A flow of a source, with its verdict: early, final, or None where it has too few packets for one, or none
        with payload."""

    def trace(self, trace: TraceVerdict) -> None:
        """A verdict on a trace, early or final."""

    def alert(self, alert: Alert) -> None:
        """An alert that a rule made; who does not care needs no method of its own."""
        return


class Observers(Observer):
    """Tells several."""

    def __init__(self, *observers: Observer | None) -> None:
        self._observers = [observer for observer in observers if observer is not None]

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.flow(source, flow, verdict)

    def trace(self, trace: TraceVerdict) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.trace(trace)

    def alert(self, alert: Alert) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.alert(alert)


def tell(
    source: str, flow: Flow, outcome: FlowOutcome | None, traces: LiveTraces | None, observer: Observer
) -> Verdict | None:
    """Tell traces and an observer what came of a flow, None where nothing was to be asked about it; its verdict."""
    if outcome is None:
        observer.flow(source, flow, None)
        return None
    if traces is not None:
        traces.take(source, flow, outcome)
    observer.flow(source, flow, outcome.verdict)
    return outcome.verdict
