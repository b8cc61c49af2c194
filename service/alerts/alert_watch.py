"""Alert rules at work on live verdicts: an observer that tells of alerts, and reads its rules anew when they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.drift.model_drift import ModelDrift
from tapline.service.metrics import Metrics
from tapline.service.traces.trace_verdict import TraceVerdict


class AlertWatch:
    """An observer of verdicts and drift; tells `tell` of every alert, in the event loop."""

    def __init__(self, path: Path, tell: Callable[[Alert], None], metrics: Metrics) -> None:
        """
        Raises:
            AlertRulesError: the file has mistakes; the message names all of them.
        """
        raise NotImplementedError

    @property
    def problem(self) -> str | None:
        """Why the newest version of the rules is not at work, or None."""
        raise NotImplementedError

    async def run(self) -> None:
        """Look for changed rules about once a second, until cancelled."""
        raise NotImplementedError

    def reload(self) -> None:
        """Have the rules read anew soon, changed or not; for a signal's handler."""
        raise NotImplementedError

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Hold a flow's verdict against the rules."""
        raise NotImplementedError

    def trace(self, trace: TraceVerdict) -> None:
        """Hold a verdict on a trace against the rules."""
        raise NotImplementedError

    def drift(self, drift: ModelDrift) -> None:
        """Hold what a model sees against the rules."""
        raise NotImplementedError

    def alert(self, alert: Alert) -> None:
        """Alerts are its own."""
        return
