"""Verdicts on traces back to Zeek: the frames that a real Zeek took, batches, the spool."""

import asyncio
import json

import msgspec
import pytest

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict, called_unknown
from tapline.service.metrics import Metrics
from tapline.service.sinks.zeek_sink import ZeekSink, trace_verdict_row, verdict_row
from tapline.service.sources.bus.answers import VerdictRow, trace_verdicts_event, verdict_lines_event, verdicts_event
from tapline.service.sources.bus.events import VerdictsAck, parse_event
from tapline.service.sources.bus.websocket_frames import event_frame, event_of, parse_frame
from tapline.service.traces.trace_verdict import TopFlow, TraceVerdict
from tests.paths import DATA

SESSION = DATA / "bus" / "traces.jsonl"


def trace(label="camera", subject="00:17:88:01:02:03", **fields) -> TraceVerdict:
    verdict = Verdict(label, label, 0.9, False, [], "devices", "2", fields.pop("final", True))
    top = [TopFlow("C1", "1:x", 5, 7, "udp", "10.0.0.5", 1, "10.0.0.9", 2, 100, "DNS", 0.75)]
    window = 1_600_000_000_123_456, 1_600_000_600_123_456
    return TraceVerdict("ws://sensor", "mac", subject, *window, 3, 1, verdict, top, **fields)


def types(value):
    """The types of a frame's values, nested."""
    if isinstance(value["data"], list):
        return value["@data-type"], [types(item) for item in value["data"]]
    return value["@data-type"]


def recorded():
    return [json.loads(line) for line in SESSION.read_text().splitlines()]


def test_our_events_have_the_types_of_those_that_zeek_took():
    accepted = [
        json.loads(entry["frame"])
        for entry in recorded()
        if entry["from"] == "client" and "Tapline::trace_verdicts" in entry["frame"]
    ]
    assert len(accepted) > 1
    ours = json.loads(
        event_frame(trace_verdicts_event("test-2", 1, [trace_verdict_row(trace(suspicion=0.9, suspicious=True))]))
    )
    name, arguments = ours["data"][2]["data"]
    theirs_name, theirs = accepted[0]["data"][2]["data"]
    assert name == theirs_name
    version, batch, service, rows = (types(argument) for argument in arguments["data"])
    assert [version, batch, service] == [types(argument) for argument in theirs["data"][:3]]
    (row,) = rows[1]
    expected = types(theirs["data"][3])[1][0]
    kinds = [kind if isinstance(kind, str) else (kind[0], set(kind[1])) for kind in row[1]]
    assert kinds == [kind if isinstance(kind, str) else (kind[0], set(kind[1])) for kind in expected[1]]
    values = [cell["data"] for cell in arguments["data"][3]["data"][0]["data"]]
    assert values[:6] == ["00:17:88:01:02:03", "mac", 1_600_000_000_123_456, 1_600_000_600_123_456, 3, 1]


def test_our_lines_are_those_that_zeek_took():
    frames = [json.loads(line) for line in (DATA / "bus" / "session-text.jsonl").read_text().splitlines()]
    sent = [frame["frame"] for frame in frames if frame["from"] == "client" and "verdict_lines" in frame["frame"]]
    assert len(sent) > 1
    for frame in sent:
        theirs = event_of(parse_frame(frame))
        fields = theirs.args[3].split("|")
        row = VerdictRow(
            *fields[:3], int(fields[3]), fields[4], int(fields[5]), *fields[6:8], float(fields[8]), fields[9] == "T",
            fields[10] == "T", *fields[11:],
        )  # fmt: skip
        ours = json.loads(event_frame(verdict_lines_event("test-1", theirs.args[1], [row])))
        assert ours["topic"] == "tapline/verdicts"
        assert ours["data"][2] == json.loads(frame)["data"][2]


@pytest.mark.parametrize("text", ["a|b", "a;b", "|", ";"])
def test_a_name_that_would_part_lines_goes_in_records(text):
    row = verdict_row(Flow("C1", 5, 7, "10.0.0.5", 1, "10.0.0.9", 2, "udp"), trace("plug").verdict)
    assert verdict_lines_event("test", 7, [row, row]).name == "Tapline::verdict_lines"
    named = msgspec.structs.replace(row, model=text)
    for rows in ([named], [row, named]):
        assert verdict_lines_event("test", 7, rows) == verdicts_event("test", 7, rows)


def test_what_a_model_does_not_tell_is_unset_in_zeek():
    (row,) = json.loads(event_frame(trace_verdicts_event("test-2", 1, [trace_verdict_row(trace())])))["data"][2][
        "data"
    ][1]["data"][3]["data"]
    assert row["data"][14:] == [{"@data-type": "none", "data": {}}] * 2


def test_the_bus_carries_the_nearest_label_whatever_a_verdict_says():
    """So that sensors and services of any release go together: a sensor makes the label of both."""
    unknown = called_unknown(trace("plug").verdict)
    assert (unknown.label, unknown.nearest) == ("unknown", "plug")
    row = trace_verdict_row(msgspec.structs.replace(trace(), verdict=unknown)).values()
    assert (row[6], row[8]) == ("plug", True)
    flow = Flow("C1", 5, 7, "10.0.0.5", 1, "10.0.0.9", 2, "udp")
    row = verdict_row(flow, unknown).values()
    assert (row[7], row[9]) == ("plug", True)


def test_zeek_acknowledged_every_batch_and_logged_it_once():
    frames = [parse_frame(entry["frame"]) for entry in recorded() if entry["from"] == "zeek"]
    assert not [frame for frame in frames if frame.type == "error"]
    events = [parse_event(event_of(frame)) for frame in frames if frame.type == "data-message"]
    acks = [event for event in events if isinstance(event, VerdictsAck)]
    sent = sum("Tapline::trace_verdicts" in entry["frame"] for entry in recorded() if entry["from"] == "client")
    assert len(acks) == sent
    assert {(ack.service, ack.logged) for ack in acks} == {("test-2", 1)}


def test_traces_go_in_batches_and_wait_for_their_acknowledgement():
    class Bus:
        url = "ws://sensor"

        def __init__(self):
            self.events = []

        async def publish(self, event):
            self.events.append(event)
            return True

    async def main():
        bus = Bus()
        sink = ZeekSink(bus, Metrics(), 1000, trace_verdicts_event)
        for number in range(150):
            sink.put(trace_verdict_row(msgspec.structs.replace(trace(), subject=f"10.0.0.{number}")))
        task = asyncio.create_task(sink.run())
        async with asyncio.timeout(5):
            while len(bus.events) < 2:
                await asyncio.sleep(0.01)
        assert sink.pending_verdicts == 150
        for event in bus.events:
            _, batch, service, rows = event.args
            sink.acknowledge(VerdictsAck(service, batch, len(rows)))
        assert sink.pending_verdicts == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return bus.events

    events = asyncio.run(main())
    assert [len(event.args[3]) for event in events] == [100, 50]
    assert {(event.name, event.topic) for event in events} == {("Tapline::trace_verdicts", "tapline/verdicts")}
    assert events[1].args[3][0][0] == "10.0.0.100"
