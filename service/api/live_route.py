"""`GET /v1/live`: the account of the live path, for people and dashboards."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING

import msgspec

from tapline.service.api import live_schemas
from tapline.service.history.history_errors import HistoryBusyError, SlowQueryError
from tapline.service.live.sensors import Sensor
from tapline.service.runtime import Service
from tapline.service.sinks.delivery import Delivery
from tapline.service.sources.bus.source import SensorState

if TYPE_CHECKING:
    from tapline.service.history.history import History

TOP_SUBJECTS = 20
HISTORY_SECONDS = 1.0


async def live(service: Service) -> live_schemas.Live:
    """Everything that came in live and what became of it."""
    pipeline = service.pipeline
    return live_schemas.Live(
        counts=dataclasses.asdict(pipeline.counts),
        waiting=pipeline.waiting_flows,
        shed_by_subject=[
            live_schemas.Subject(subject=subject, flows=flows)
            for subject, flows in pipeline.shed_by_subject.top(TOP_SUBJECTS)
        ],
        buses=[_bus(sensor) for sensor in service.sensors.sensors],
        traces=_traces(service),
        parts=[
            live_schemas.Part(name=part.name, running=part.running, deaths=part.deaths, reason=part.reason)
            for part in service.supervisor.parts.values()
        ],
        history=await _history(service),
        outputs=[_output(delivery) for delivery in service.outputs.deliveries],
        alert_rules=_alert_rules(service),
    )


def _alert_rules(service: Service) -> live_schemas.AlertRulesState | None:
    watch = service.alerts
    if watch is None:
        return None
    return live_schemas.AlertRulesState(path=str(watch.path), rules=watch.rules, problem=watch.problem)


async def _history(service: Service) -> live_schemas.HistoryState | None:
    history = service.history
    if history is None:
        return None
    return live_schemas.HistoryState(
        place=history.place,
        used_bytes=history.used_bytes,
        problem=history.problem,
        recent_sensors=await _recent_sensors(history),
        **msgspec.structs.asdict(history.counts),
    )


async def _recent_sensors(history: History) -> dict[str, int] | None:
    """Nobody waits here for a database that is away or slow."""
    if history.problem is None:
        with contextlib.suppress(SlowQueryError, HistoryBusyError, TimeoutError):
            async with asyncio.timeout(HISTORY_SECONDS):
                return await history.recent_sensors()
    return None


def _output(delivery: Delivery) -> live_schemas.OutputState:
    counts = delivery.counts
    return live_schemas.OutputState(
        name=delivery.name,
        received=counts.received,
        recovered=counts.recovered,
        written=counts.written,
        dropped=counts.dropped,
        failed=counts.failed,
        dropped_by={str(kind): records for kind, records in counts.dropped_by.items()},
        queued=delivery.queued,
        spooled=delivery.spooled,
        problem=delivery.problem,
    )


def _traces(service: Service) -> list[live_schemas.LiveTraces]:
    models = service.traces.models if service.traces is not None else {}
    return [
        live_schemas.LiveTraces(
            model=name,
            version=model.checkpoint.version,
            open_windows=model.open_windows,
            open_flows=model.open_flows,
            counts=dataclasses.asdict(model.windows.counts),
        )
        for name, model in sorted(models.items())
    ]


def _bus(sensor: Sensor) -> live_schemas.Bus:
    state = sensor.source.state
    return live_schemas.Bus(
        url=state.url,
        connected=state.connected,
        peer_version=state.peer_version,
        reason=state.reason,
        connections=state.connections,
        refused=state.malformed,
        faults=state.faults,
        pending_verdicts=sensor.pending_verdicts,
        sensors=[_sensor(name, account) for name, account in state.sensors.items()],
    )


def _sensor(name: str, account: SensorState) -> live_schemas.Sensor:
    zeek = None
    if account.stats is not None:
        zeek = {key: float(value) for key, value in msgspec.structs.asdict(account.stats).items() if key != "sensor"}
    return live_schemas.Sensor(
        name=name,
        format=account.format,
        hint=account.format_hint,
        flows=account.flows,
        early=account.early,
        missed=account.missed,
        restarts=account.restarts,
        lag_seconds=account.lag_seconds,
        zeek=zeek,
    )
