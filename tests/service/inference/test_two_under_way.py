"""An engine has two batches under way: they answer in order, and whatever comes of one, nobody waits for ever."""

import asyncio
import threading

import pytest

from tapline.service.engines.thread import EngineStalledError, EngineThread
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_network import FlowNetwork
from tapline.service.inference.lane import BATCHES_UNDER_WAY
from tapline.service.inference.waiting import VerdictError
from tapline.service.metrics import Metrics
from tests.conftest import make_flows
from tests.service.conftest import FakeEngine

BATCH = 2


class Noted(Classifier):
    """Says when it begins with a batch; of each so many seconds later it is done, once the engine is."""

    def __init__(self, engine, pauses=(), **options):
        super().__init__(engine, **options)
        self.begun = 0
        self._pauses = list(pauses)

    def classify_each(self, flows, ports=None, cascade=None):
        number, self.begun = self.begun, self.begun + 1
        found = super().classify_each(flows, ports, cascade)
        if number < len(self._pauses):
            threading.Event().wait(self._pauses[number])
        return found


async def until(what):
    while not what():
        await asyncio.sleep(0.005)


def run(classifier, body, stop_seconds=5.0, **options):
    async def main():
        batcher = Batcher([classifier], Metrics(), max_batch_size=BATCH, max_queue_delay_ms=0, **options)
        batcher.start()
        try:
            async with asyncio.timeout(20):
                return await body(batcher)
        finally:
            classifier.network.engine.gate.set()
            async with asyncio.timeout(20):
                await batcher.stop(stop_seconds)

    return asyncio.run(main())


def test_the_second_is_answered_after_the_first(engine):
    classifier, order = Noted(engine, pauses=[0.3]), []

    async def body(batcher):
        groups = [batcher.submit(make_flows(BATCH, seed), caller="one") for seed in range(3)]
        for number, group in enumerate(groups):
            group.add_done_callback(lambda _, number=number: order.append(number))
        await asyncio.gather(*groups)

    run(classifier, body)
    assert order == [0, 1, 2]


@pytest.mark.parametrize("gone", [0, 1])
def test_who_goes_while_it_is_encoded_costs_nobody_else(engine, gone):
    classifier = Noted(engine)

    async def body(batcher):
        engine.gate.clear()
        groups = [batcher.submit(make_flows(BATCH, seed), caller="one") for seed in range(4)]
        await until(lambda: classifier.begun == BATCHES_UNDER_WAY)
        groups.pop(gone).cancel()
        engine.gate.set()
        return [len(await group) for group in groups]

    assert run(classifier, body) == [BATCH] * 3


@pytest.mark.parametrize("fails", [0, 1])
def test_an_engine_that_fails_on_one_answers_the_other(engine, fails):
    engine.poison = 254 + 2  # ps tokens of the flow with most packets
    flows = [make_flows(BATCH, seed) for seed in range(3)]
    for flow in flows[fails]:
        flow.payload_lengths = [1] * 254

    async def body(batcher):
        groups = [batcher.submit(each, caller="one") for each in flows]
        return [[outcome is None for outcome in await group] for group in groups], batcher.failing

    assert run(Noted(engine), body) == ([[number == fails] * BATCH for number in range(3)], False)


def test_a_model_that_is_replaced_answers_both(engine):
    classifier, other = Noted(engine), FakeEngine(engine.checkpoint)

    async def body(batcher):
        engine.gate.clear()
        groups = [batcher.submit(make_flows(BATCH, seed), caller="one") for seed in range(4)]
        await until(lambda: classifier.begun == BATCHES_UNDER_WAY)
        swap = asyncio.create_task(batcher.replace([Classifier(other)]))
        late = [await group for group in groups[2:]]
        assert not groups[0].done()
        assert not groups[1].done()
        engine.gate.set()
        await swap
        return [len(found) for found in late], [group.done() for group in groups]

    assert run(classifier, body) == ([BATCH] * 2, [True] * 4)
    assert (engine.batches, other.batches) == ([BATCH] * 2, [BATCH] * 2)


def test_stopping_answers_both_and_who_is_queued_and_who_waits_for_room(engine):
    classifier = Noted(engine)

    async def body(batcher):
        engine.gate.clear()
        groups = [batcher.submit(make_flows(BATCH, seed), caller="one") for seed in range(2)]
        await until(lambda: classifier.begun == BATCHES_UNDER_WAY)
        groups += [batcher.submit(make_flows(BATCH, seed), caller="one") for seed in range(2)]
        waiting = asyncio.create_task(batcher.classify(make_flows(BATCH)))
        await asyncio.sleep(0)
        await batcher.stop(0.05)
        return await asyncio.gather(*groups, waiting, return_exceptions=True)

    found = run(classifier, body, max_queue_size=2 * BATCH)
    assert found[:2] == [[None] * BATCH] * 2
    assert [type(each) for each in found[2:]] == [VerdictError] * 3


def test_an_engine_that_hangs_on_the_first_answers_both_in_time(engine):
    classifier = Noted(FlowNetwork(engine, EngineThread("the engine", 0.2)))

    async def body(batcher):
        engine.gate.clear()
        groups = [batcher.submit(make_flows(BATCH, seed), caller="one") for seed in range(2)]
        found = await asyncio.gather(*groups)
        failing = batcher.failing
        with pytest.raises(EngineStalledError):
            classifier.network.check()
        return found, failing

    assert run(classifier, body, stop_seconds=0.1) == ([[None] * BATCH] * 2, True)


def test_a_batch_that_is_given_up_before_it_began_is_answered(engine):
    async def body(batcher):
        group = batcher.submit(make_flows(BATCH))
        await until(lambda: not batcher.waiting_flows)
        return await group

    async def cancelled(batcher):
        [lane] = batcher._lanes
        lane.part.task.cancel()
        await asyncio.gather(lane.part.task, return_exceptions=True)
        group = batcher.submit(make_flows(BATCH))
        batch = await batcher._queue.next_batch(lambda: False)
        computing = lane._start(batch, None)
        computing.cancel()
        return await group

    assert None not in run(Noted(engine), body)
    assert run(Noted(engine), cancelled) == [None] * BATCH
