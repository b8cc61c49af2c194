"""The batcher answers every flow once, within its bounds, whatever the engine does."""

import asyncio

import numpy as np
import pytest

from service.batcher import Batcher, QueueFullError, VerdictError
from service.classifier import Classifier
from service.engines.base import EngineError, Scores
from service.metrics import Metrics
from tests.conftest import make_flows


def run(engine, body, **options):
    async def main():
        batcher = Batcher(Classifier(engine), Metrics(), **options)
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
        batcher = Batcher(Classifier(engine), Metrics(), max_batch_size=2, max_queue_delay_ms=0)
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
