"""Flows of a capture are classified while those before are written; nothing is waited for that is given up."""

import asyncio

import pytest

from tapline.models.checkpoint import read_checkpoint
from tapline.models.verdict import Verdict
from tapline.service.classifying import Classifying
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.waiting import VerdictError
from tapline.service.metrics import Metrics
from tapline.service.traces.capture_traces import CaptureTraces
from tests.conftest import make_flows


class Batcher:
    """Gives outcomes when the test does."""

    def __init__(self, checkpoint):
        self.classifier = self
        self.checkpoint = checkpoint
        self.asked = []

    def accepts(self, flow):
        return True

    async def classify(self, flows, *, caller, ports, cascade):
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]


class Written:
    def __init__(self):
        self.uids = []

    def add(self, flow, verdict, name):
        self.uids.append(flow.uid)


async def aside(work, *arguments):
    return work(*arguments)


@pytest.fixture
def parts(checkpoint_dir):
    batcher, written = Batcher(read_checkpoint(checkpoint_dir)), Written()
    work = Classifying("a.pcap", batcher, CaptureTraces([], "a.pcap"), written, Metrics(), aside)
    return work, batcher, written


def outcomes(count):
    verdict = Verdict("a", "a", 0.9, unknown=False, alternatives=[], model="m", version="1")
    return [FlowOutcome(verdict) for _ in range(count)]


async def asked(batcher, count):
    while len(batcher.asked) < count:
        await asyncio.sleep(0)


def test_flows_are_written_while_the_next_are_classified(parts):
    work, batcher, written = parts

    async def run():
        flows = make_flows(4)
        await asyncio.wait_for(work.take(flows[:2]), 5)  # waits for nothing
        await asked(batcher, 1)
        taking = asyncio.ensure_future(work.take(flows[2:]))
        await asked(batcher, 2)
        assert not taking.done()
        batcher.asked[0].set_result(outcomes(2))
        await asyncio.wait_for(taking, 5)
        assert written.uids == [flow.uid for flow in flows[:2]]
        batcher.asked[1].set_result(outcomes(2))
        await work.settle()
        assert written.uids == [flow.uid for flow in flows]
        assert work.entry.flows == 4

    asyncio.run(run())


def test_what_is_given_up_is_cancelled(parts):
    work, batcher, written = parts

    async def run():
        await work.take(make_flows(2))
        await asked(batcher, 1)
        work.give_up()
        await asyncio.sleep(0)
        assert batcher.asked[0].cancelled()
        await work.settle()
        assert written.uids == []

    asyncio.run(run())


def test_one_failure_gives_up_what_is_behind(parts):
    work, batcher, written = parts

    async def run():
        flows = make_flows(2)
        await work.take(flows[:1])
        taking = asyncio.ensure_future(work.take(flows[1:]))
        await asked(batcher, 2)
        batcher.asked[0].set_exception(VerdictError("the model was unloaded"))
        with pytest.raises(VerdictError):
            await taking
        await asyncio.sleep(0)
        assert batcher.asked[1].cancelled()
        await work.settle()
        assert written.uids == []

    asyncio.run(run())
