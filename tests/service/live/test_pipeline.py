"""The live path counts every flow once, computes nothing twice, and accounts for all that it took."""

import asyncio
import dataclasses

import msgspec
import pytest

from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.live.live_queue import LiveQueue
from tapline.service.live.pipeline import LivePipeline
from tapline.service.metrics import Metrics
from tapline.service.sources.bus.glances import Glance
from tests.conftest import make_flows


class Delivered(list):
    """Collects what is delivered."""

    def take(self, flow, outcome):
        self.append((flow.uid, outcome.verdict.final))


@pytest.fixture
def delivered():
    return Delivered()


def play(engine, body, *, queue_flows=100):
    async def main():
        batcher = Batcher([Classifier(engine)], Metrics(), max_queue_delay_ms=0)
        pipeline = LivePipeline(batcher, Metrics(), queue_flows=queue_flows)
        batcher.start()
        task = asyncio.create_task(pipeline.run())
        async with asyncio.timeout(20):
            await body(pipeline)
            await pipeline.drain(10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await batcher.stop(5)
        counts = pipeline.counts
        taken = counts.delivered + counts.superseded + counts.shed + counts.skipped + counts.failed
        assert counts.received == taken, counts
        return pipeline

    return asyncio.run(main())


def early(flow):
    return msgspec.structs.replace(flow, complete=False)


def test_early_then_final_is_one_flow(engine, delivered):
    (flow,) = make_flows(1)
    longer = msgspec.structs.replace(flow, payload_lengths=[*flow.payload_lengths, 7])

    async def body(pipeline):
        pipeline.take(early(flow), delivered.take)
        await pipeline.drain(5)
        pipeline.take(longer, delivered.take)

    pipeline = play(engine, body)
    assert delivered == [(flow.uid, False), (flow.uid, True)]
    assert (pipeline.counts.flows, pipeline.counts.reused, sum(engine.batches)) == (1, 0, 2)


def test_a_final_that_adds_nothing_costs_nothing(engine, delivered):
    (flow,) = make_flows(1)

    async def body(pipeline):
        pipeline.take(early(flow), delivered.take)
        await pipeline.drain(5)
        pipeline.take(flow, delivered.take)

    pipeline = play(engine, body)
    assert delivered == [(flow.uid, False), (flow.uid, True)]
    assert (pipeline.counts.flows, pipeline.counts.reused, sum(engine.batches)) == (1, 1, 1)


def test_a_final_takes_the_place_of_its_waiting_early_form(engine, delivered):
    (flow,) = make_flows(1)

    async def body(pipeline):
        pipeline.take(early(flow), delivered.take)
        pipeline.take(flow, delivered.take)

    pipeline = play(engine, body)
    assert delivered == [(flow.uid, True)]
    assert (pipeline.counts.flows, pipeline.counts.superseded) == (1, 1)


def test_overload_sheds_the_flood_and_keeps_the_count(engine, delivered):
    flood = [msgspec.structs.replace(flow, orig_h="203.0.113.9") for flow in make_flows(300)]
    quiet = [msgspec.structs.replace(flow, uid=f"Q{flow.uid}", orig_h="10.9.9.9") for flow in make_flows(3)]

    async def body(pipeline):
        for flow in [*flood, *quiet]:
            pipeline.take(flow, delivered.take)

    pipeline = play(engine, body, queue_flows=50)
    assert pipeline.counts.shed == 253
    assert pipeline.shed_by_subject.top(3) == [("203.0.113.9", 253)]
    assert {uid for uid, _ in delivered} >= {flow.uid for flow in quiet}
    assert pipeline.counts.delivered == 50


@pytest.fixture
def overload(monkeypatch):
    """Says whether more comes than is computed, and refuses everybody meanwhile."""
    state = {"on": False}
    monkeypatch.setattr(LiveQueue, "is_overloaded", property(lambda queue: state["on"]))
    monkeypatch.setattr(LiveQueue, "refused", lambda queue, subjects: [state["on"]] * len(subjects))
    return state


def glance(flow, final=True):
    return Glance(flow.uid, flow.orig_h, final)


def test_under_overload_what_ends_is_read_and_the_rest_is_shed_unread(engine, delivered, overload):
    ends, waits, new, both = make_flows(4)

    async def body(pipeline):
        assert pipeline.choose() is None
        pipeline.take(early(ends), delivered.take)
        await pipeline.drain(5)
        engine.gate.clear()
        pipeline.take(early(both), delivered.take)  # is with the engine
        await asyncio.sleep(0.05)
        pipeline.take(early(waits), delivered.take)
        overload["on"] = True
        wanted = pipeline.choose()
        came = [glance(ends), glance(waits), glance(new, final=False), glance(new), None, glance(new, final=False)]
        assert wanted(came) == [True, True, False, False, True, False]
        pipeline.take(ends, delivered.take)
        pipeline.take(waits, delivered.take)
        pipeline.take(early(new), delivered.take)  # refused after it was read
        overload["on"] = False
        engine.gate.set()
        await pipeline.drain(5)
        pipeline.take(new, delivered.take)

    counts = play(engine, body).counts
    assert (ends.uid, True) in delivered
    assert (waits.uid, True) in delivered
    assert (counts.received, counts.shed, counts.unread, counts.superseded) == (10, 4, 3, 1)
    assert counts.flows == 4


def test_what_does_not_expire_is_never_refused(engine, delivered, overload):
    overload["on"] = True

    async def body(pipeline):
        for flow in make_flows(5):
            pipeline.take(flow, delivered.take, expires=False)

    assert play(engine, body).counts.delivered == 5


def test_flows_without_payload_are_skipped_and_counted(engine, delivered):
    (flow,) = make_flows(1)
    empty = msgspec.structs.replace(flow, payload_lengths=[], up=0, down=0)

    async def body(pipeline):
        pipeline.take(empty, delivered.take)

    assert dataclasses.asdict(play(engine, body).counts)["skipped"] == 1
    assert delivered == []
