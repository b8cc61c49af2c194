"""Those who listen hear what they ask for; one who is slow misses verdicts and is told, and nobody waits for any."""

import asyncio
import json

import pytest

from tapline.service.history.filters import AlertFilter, FlowFilter, TraceFilter
from tapline.service.live.verdict_stream import MAX_LISTENERS, MOST_HEARD, QUEUE, ListenersError, VerdictStream
from tapline.service.metrics import Metrics
from tests.service.history.kept import BUS, flow, trace, verdict
from tests.service.history.test_alerts import ALERTS

ANY = FlowFilter(), TraceFilter()


def listen(body):
    async def main():
        async with asyncio.timeout(30):
            return await body(VerdictStream(Metrics()))

    return asyncio.run(main())


def test_flows_and_traces_are_heard_in_order_as_json():
    async def body(stream):
        stream.flow(BUS, flow("before"), verdict())
        with stream.listening(*ANY) as listener:
            stream.flow(BUS, flow("a"), verdict(final=False))
            stream.flow(BUS, flow("left out"), None)
            stream.trace(trace())
            return [(event.kind, json.loads(event.json)) for event in await listener.next(10)]

    (first, one), (second, other) = listen(body)
    assert (first, one["uid"], one["source"], one["orig_bytes"]) == ("flow", "a", BUS, "")
    assert not one["verdict"]["final"]
    assert (second, other["subject"], other["top_flows"][0]["share"]) == ("trace", "00:17:88:01:02:03", 0.75)


def test_only_what_filters_want_is_heard():
    async def body(stream):
        wanted = FlowFilter(host="10.0.0.0/8", label="unknown"), None
        with stream.listening(*wanted) as listener:
            hearing = asyncio.create_task(listener.next(20))
            for number in range(300):
                stream.flow(BUS, flow(str(number)), verdict(unknown=number == 250))
                stream.trace(trace())
            return [event.record.uid for event in await hearing]

    assert listen(body) == ["250"]


def test_alerts_are_heard_by_those_who_want_them():
    async def body(stream):
        high = AlertFilter(severity="high", host="10.0.0.0/8")
        with stream.listening(*ANY, high) as listener, stream.listening(*ANY) as other:
            for one in ALERTS:
                stream.alert(one)
            stream.flow(BUS, flow("a"), verdict())
            heard = [(event.kind, json.loads(event.json)) for event in await listener.next(10)]
            return heard, [event.kind for event in await other.next(10)]

    ((first, alert), (second, _)), others = listen(body)
    assert (first, alert["id"], alert["rule"], second) == ("alert", "c", "malware", "flow")
    assert "orig_p" not in alert
    assert others == ["flow"]


def test_silence_ends_in_time():
    async def body(stream):
        with stream.listening(None, TraceFilter()) as listener:
            stream.flow(BUS, flow(), verdict())
            return await listener.next(0.01)

    assert listen(body) == []


def test_one_who_is_slow_misses_the_oldest_and_is_told_how_many():
    async def body(stream):
        with stream.listening(*ANY) as slow, stream.listening(*ANY) as quick:
            for number in range(QUEUE + 70):
                stream.flow(BUS, flow(str(number)), verdict())
                if number % MOST_HEARD == MOST_HEARD - 1:
                    assert len(await quick.next(10)) == MOST_HEARD
            heard = await slow.next(10)
            assert (slow.take_missed(), slow.take_missed(), quick.take_missed()) == (70, 0, 0)
            return [event.record.uid for event in heard], stream._metrics

    heard, metrics = listen(body)
    assert heard == [str(number) for number in range(70, 70 + MOST_HEARD)]
    assert metrics.registry.get_sample_value("tapline_stream_missed_total") == 70


def test_no_more_may_listen_than_are_borne_and_one_who_leaves_makes_room():
    async def body(stream):
        listening = [stream.listening(*ANY) for _ in range(MAX_LISTENERS)]
        for one in listening:
            one.__enter__()
        with pytest.raises(ListenersError), stream.listening(*ANY):
            pass
        listening.pop().__exit__(None, None, None)
        with stream.listening(*ANY):
            pass
        return stream._metrics.registry.get_sample_value("tapline_stream_clients")

    assert listen(body) == MAX_LISTENERS - 1
