"""`POST /v1/classify/flows`: takes flows from a sensor of one's own, and answers with their verdicts and traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
from fastapi import Request
from fastapi.responses import StreamingResponse

from tapline.models.flow import Flow
from tapline.service.api.bodies import read_flows
from tapline.service.api.choice import Choice
from tapline.service.api.desk import Desk
from tapline.service.api.errors import ApiError, overload_as_api_error
from tapline.service.api.limits import within
from tapline.service.api.wanted import resources
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.results.records import InputSummary, SummaryBuilder, classified
from tapline.service.results.sharing import Sharing
from tapline.service.runtime import Service
from tapline.service.traces.capture_traces import CaptureTraces

_JSON = ("application/json", "+json")
_STEP_FLOWS = 256


async def classify_body(
    request: Request, service: Service, batcher: Batcher, desk: Desk, wanted: Choice
) -> StreamingResponse:
    """Read the flows, classify them, answer with what is `wanted`.

    Raises:
        ApiError: 415 not JSON, 422 faulty flows, 429 and 503 too much work.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.endswith(_JSON):
        raise ApiError(415, "not_json", "send the flows as application/json")
    seat = resources(request).enter_context(desk.seat())
    declared = request.headers.get("content-length", "0")
    flows = await read_flows(request.stream(), int(declared), seat)
    answer = await desk.do(
        _Answer,
        flows,
        batcher,
        service.trace_models.captured(batcher.classifier, "flows", wanted.traces),
        wanted.sharing,
    )
    with overload_as_api_error():
        batcher.check_room(len(answer.accepted))
        computing = asyncio.ensure_future(
            batcher.classify(answer.accepted, urgent=True, ports=wanted.ports, cascade=wanted.cascade)
        )
        found = await within(service.settings.request_timeout_seconds, computing)
    for step in range(0, len(found), _STEP_FLOWS):
        await desk.do(answer.take, found, range(step, min(step + _STEP_FLOWS, len(found))))
    await answer.score_traces(desk)
    pieces = await desk.do(answer.pieces)
    length = str(sum(map(len, pieces)))
    return StreamingResponse(_sent(pieces), media_type="application/json", headers={"Content-Length": length})


async def _sent(pieces: list[bytes]) -> AsyncIterator[bytes]:
    """The pieces in turn: written at once, a large answer would hold up everybody else."""
    for piece in pieces:
        yield piece


class _Answer:
    """What an answer holds, put together step by step."""

    def __init__(self, flows: list[Flow], batcher: Batcher, traces: CaptureTraces, sharing: Sharing) -> None:
        classifier = batcher.classifier
        self.accepted: list[Flow] = []
        self._traces = traces
        self._sharing = sharing
        self._builder = SummaryBuilder(classifier.checkpoint, traces.checkpoints)
        self._entry = InputSummary("flows", len(flows))
        self._flows: list[bytes] = []
        self._trace_records: list[bytes] = []
        for flow in flows:
            if classifier.accepts(flow):
                self.accepted.append(flow)
            else:
                self._builder.leave_out(flow)

    def take(self, found: Sequence[FlowOutcome | None], chosen: range) -> None:
        """Add the chosen flows with their outcomes."""
        for index in chosen:
            flow, outcome = self.accepted[index], found[index]
            if outcome is not None and outcome.verdict is None:
                self._builder.leave_out(flow)
            else:
                verdict = outcome.verdict if outcome else None
                self._builder.add(flow, verdict)
                self._flows.append(msgspec.json.encode(classified(self._sharing.flow(flow), verdict, "")))
            if outcome is not None:
                self._traces.add(flow, outcome)

    async def score_traces(self, desk: Desk) -> None:
        """Close the traces, score and count them."""
        await desk.do(self._traces.finish)
        while found := await asyncio.to_thread(self._traces.ready):
            for trace in found:
                self._builder.add_trace(trace)
                self._trace_records.append(msgspec.json.encode(trace))
        self._builder.account_traces(self._traces.accounts())

    def pieces(self) -> list[bytes]:
        """The body."""
        summary = msgspec.json.encode(self._builder.finish([self._entry]))
        flows, traces = _joined(self._flows), _joined(self._trace_records)
        return [b'{"flows":[', *flows, b'],"traces":[', *traces, b'],"summary":' + summary + b"}"]


def _joined(records: list[bytes]) -> list[bytes]:
    """The elements of a list in pieces."""
    steps = range(0, len(records), _STEP_FLOWS)
    return [(b"," if step else b"") + b",".join(records[step : step + _STEP_FLOWS]) for step in steps]
