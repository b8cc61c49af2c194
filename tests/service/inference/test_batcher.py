"""The batcher answers every flow once, within its bounds, whatever the engine does."""

import asyncio

import numpy as np
import pytest

from tapline.models.encode import encode
from tapline.service.engines.engine import EngineError, Scores
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.waiting import QueueFullError, VerdictError
from tapline.service.metrics import Metrics
from tests.conftest import make_flows
from tests.service.conftest import FakeEngine


def run(engine, body, **options):
    async def main():
        batcher = Batcher([Classifier(engine)], Metrics(), **options)
        batcher.start()
        try:
            async with asyncio.timeout(20):
                return await body(batcher)
        finally:
            engine.gate.set()
            await batcher.stop(5)

    return asyncio.run(main())


def metric(batcher, name, **labels):
    return batcher._metrics.registry.get_sample_value(name, labels) or 0


def test_callers_share_a_batch(engine):
    async def body(batcher):
        groups = [batcher.submit(make_flows(3, seed)) for seed in range(4)]
        return [await group for group in groups]

    found = run(engine, body, max_queue_delay_ms=200, max_batch_size=12)
    assert [len(group) for group in found] == [3, 3, 3, 3]
    assert engine.batches == [12]
    assert found[0][0].verdict.label == "dns"


def test_a_full_queue_refuses_all_of_a_group(engine):
    async def body(batcher):
        engine.gate.clear()
        first = batcher.submit(make_flows(4))
        await asyncio.sleep(0.05)  # the loop has taken the first batch
        second = batcher.submit(make_flows(5))
        with pytest.raises(QueueFullError, match="5 flows are waiting, the limit is 8"):
            batcher.submit(make_flows(4))
        assert metric(batcher, "tapline_failures_total", reason="REJECTED") == 4
        engine.gate.set()
        return len(await first), len(await second)

    assert run(engine, body, max_batch_size=4, max_queue_size=8, max_queue_delay_ms=0) == (4, 5)


def test_bulk_waits_for_room(engine):
    async def body(batcher):
        return await batcher.classify(make_flows(50))

    assert len(run(engine, body, max_batch_size=16, max_queue_size=8)) == 50


def test_room_that_a_caller_gives_up_is_told(engine):
    async def body(batcher):
        gone = batcher.submit(make_flows(8))
        waiting = asyncio.create_task(batcher.classify(make_flows(4)))
        await asyncio.sleep(0.01)
        gone.cancel()
        return len(await waiting)

    assert run(engine, body, max_batch_size=16, max_queue_size=8, max_queue_delay_ms=100) == 4


def test_one_bad_flow_costs_one_verdict(engine):
    engine.poison = 254 + 2  # ps tokens of the flow with most packets
    flows = make_flows(6)
    flows[3].payload_lengths = [1] * 254

    async def body(batcher):
        found = await batcher.submit(flows)
        return found, metric(batcher, "tapline_failures_total", reason="BACKEND")

    found, failures = run(engine, body)
    assert [outcome is None for outcome in found] == [False, False, False, True, False, False]
    assert failures == 1


def test_a_batch_is_encoded_while_the_engine_is_at_the_one_before(engine, monkeypatch):
    encoded = []

    def noted(flows, features):
        encoded.append(len(flows))
        return encode(flows, features)

    monkeypatch.setattr("tapline.service.inference.flow_network.encode", noted)

    async def body(batcher):
        engine.gate.clear()
        answers = batcher.submit(make_flows(6))
        while len(encoded) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        waiting = batcher.waiting_flows
        engine.gate.set()
        return waiting, len(await answers)

    assert run(engine, body, max_batch_size=2, max_queue_delay_ms=0) == (2, 6)
    assert (encoded, engine.batches) == ([2, 2, 2], [2, 2, 2])


def test_nothing_is_computed_for_nobody(engine):
    async def body(batcher):
        engine.gate.clear()
        batcher.submit(make_flows(1))
        await asyncio.sleep(0.05)
        gone = batcher.submit(make_flows(5))
        gone.cancel()
        kept = batcher.submit(make_flows(2))
        engine.gate.set()
        await kept
        return metric(batcher, "tapline_failures_total", reason="CANCELED")

    assert run(engine, body, max_queue_delay_ms=0) == 5
    assert engine.batches == [1, 2]


def test_stopping_answers_everybody(engine):
    async def main():
        batcher = Batcher([Classifier(engine)], Metrics(), max_batch_size=2, max_queue_delay_ms=0)
        batcher.start()
        engine.gate.clear()
        waiting = batcher.submit(make_flows(6))
        await asyncio.sleep(0.05)
        await batcher.stop(0.05)
        engine.gate.set()
        with pytest.raises(VerdictError, match="stopping"):
            await waiting
        with pytest.raises(VerdictError, match="stopping"):
            batcher.submit(make_flows(1))

    asyncio.run(main())
    assert engine.gate.is_set()


def test_a_wrong_number_of_scores_is_an_error(engine):
    engine.run = lambda batch: Scores(np.zeros((1, 3), np.float32), np.zeros((1, 64), np.float32))
    with pytest.raises(EngineError, match="scored 1 flows of 2"):
        Classifier(engine).classify(make_flows(2))


def test_urgent_flows_overtake_bulk(engine):
    async def body(batcher):
        engine.gate.clear()
        first = batcher.submit(make_flows(1))
        await asyncio.sleep(0.05)  # the loop has taken the first batch
        order = []
        bulk = batcher.submit(make_flows(6), urgent=False)
        urgent = batcher.submit(make_flows(6))
        bulk.add_done_callback(lambda _: order.append("bulk"))
        urgent.add_done_callback(lambda _: order.append("urgent"))
        await asyncio.sleep(0.05)  # the next batch is on its way to the engine
        engine.gate.set()
        await asyncio.gather(first, bulk, urgent)
        return order

    assert run(engine, body, max_batch_size=6, max_queue_delay_ms=0) == ["urgent", "bulk"]
    assert engine.batches == [1, 6, 6]


def test_a_small_call_does_not_wait_behind_a_large_one(engine):
    async def body(batcher):
        engine.gate.clear()
        first = batcher.submit(make_flows(1))
        await asyncio.sleep(0.05)
        large, small = batcher.submit(make_flows(100)), batcher.submit(make_flows(2))
        engine.gate.set()
        await asyncio.gather(first, small)
        waiting = not large.done()
        await large
        return waiting

    assert run(engine, body, max_batch_size=8, max_queue_delay_ms=0)


def test_a_batch_is_closed_by_its_tokens(engine):
    flows = make_flows(8)
    tokens = Classifier(engine).tokens

    async def body(batcher):
        return await batcher.submit(flows)

    limit = 2 * max(tokens(flow) for flow in flows)
    assert len(run(engine, body, max_batch_tokens=limit, max_queue_delay_ms=50)) == 8
    assert len(engine.batches) > 1
    assert sum(engine.batches) == 8


def test_a_replaced_engine_ends_and_the_queue_stays(engine, checkpoint_dir):
    other = FakeEngine(engine.checkpoint)

    async def body(batcher):
        engine.gate.clear()
        waiting = [batcher.submit(make_flows(4, seed)) for seed in range(3)]
        await asyncio.sleep(0.05)
        swap = asyncio.create_task(batcher.replace([Classifier(other)]))
        await asyncio.sleep(0.05)
        engine.gate.set()
        await swap
        return [len(await group) for group in waiting]

    assert run(engine, body, max_batch_size=4, max_queue_delay_ms=0) == [4, 4, 4]
    assert sum(engine.batches) + sum(other.batches) == 12
    assert sum(other.batches) >= 4


def test_two_engines_work_side_by_side(engine):
    other = FakeEngine(engine.checkpoint)

    async def main():
        batcher = Batcher([Classifier(engine), Classifier(other)], Metrics(), max_batch_size=2, max_queue_delay_ms=0)
        batcher.start()
        async with asyncio.timeout(20):
            await asyncio.gather(*(batcher.submit(make_flows(2, seed)) for seed in range(40)))
        await batcher.stop(5)

    asyncio.run(main())
    assert sum(engine.batches) + sum(other.batches) == 80
    assert min(len(engine.batches), len(other.batches)) > 0


def test_an_engine_that_fails_on_all_is_told_of(engine):
    engine.run = lambda batch: 1 / 0

    async def body(batcher):
        found = await batcher.submit(make_flows(5))
        failing = batcher.failing
        return found, failing

    assert run(engine, body) == ([None] * 5, True)
