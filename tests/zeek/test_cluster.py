"""A cluster with a logger, a proxy and two workers: a verdict that is acknowledged is in the logger's log."""

import asyncio
import shutil
from collections import Counter

import pytest

from tapline.service.engines.loading import load_engine
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.live.pipeline import LivePipeline
from tapline.service.live.sensors import Sensors
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.sinks import zeek_sink as sink
from tapline.service.sources.bus.answers import TraceVerdictRow
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.capture import CaptureReader
from tests.zeek.clusters import CAPTURES, Cluster, backends

pytestmark = [pytest.mark.zeek, pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")]

EXPECTED = sum(bool(flow.payload_lengths) for path in CAPTURES.values() for flow in CaptureReader(path))
TRACE = TraceVerdictRow(
    "10.0.0.1", "originator", 1, 2, 3, 0, "camera", 0.5, False, True, ["C1"], [0.5], "a model", "1"
)  # fmt: skip
DEADLINE_SECONDS = 150


@pytest.fixture(autouse=True)
def soon_again(monkeypatch):
    monkeypatch.setattr(sink, "ACK_SECONDS", 2.0)


async def until(condition, cluster, seconds=DEADLINE_SECONDS):
    """Wait for something to become true; a node that dies first fails the test with what it said."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                assert not cluster.died(), (cluster.died(), cluster.said())
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(str(cluster.said()))


class Serving:
    """The live path of a service on a cluster's bus."""

    def __init__(self, cluster, checkpoint_dir):
        self.flows = []
        metrics = Metrics()
        self.batcher = Batcher([Classifier(load_engine("onnx", checkpoint_dir))], metrics)
        pipeline = LivePipeline(self.batcher, metrics, queue_flows=10_000)
        self.sensors = Sensors(
            [f"ws://127.0.0.1:{cluster.port}"],
            pipeline,
            metrics,
            tls=TlsFiles(),
            spool_verdicts=10_000,
            observer=self,
            supervisor=Supervisor(metrics),
        )
        (self.sensor,) = self.sensors.sensors
        self.sent = Counter()
        sink = self.sensor.sinks[0]
        publish = sink._publish

        async def counted(batch, rows):
            self.sent[batch] += 1
            return await publish(batch, rows)

        sink._publish = counted

    def flow(self, source, flow, verdict):
        if verdict is not None:
            self.flows.append(flow)

    def trace(self, trace):
        pass

    def is_through(self):
        return len(self.flows) == EXPECTED and self.sensor.pending_verdicts == 0


def uids(lines):
    return sorted(line["uid"] for line in lines)


@pytest.mark.parametrize("backend", backends())
def test_what_is_acknowledged_is_in_the_loggers_log(backend, checkpoint_dir, tmp_path):
    async def main():
        cluster = Cluster(tmp_path, backend)
        serving = Serving(cluster, checkpoint_dir)
        serving.batcher.start()
        with cluster.stopped_at_the_end():
            async with serving.sensors.running(5):
                cluster.start()
                serving.sensor.sinks[1].put(TRACE)
                await until(serving.is_through, cluster)
            await until(lambda: len(cluster.lines("logger", "tapline.log")) >= EXPECTED, cluster)
            await until(lambda: cluster.lines("logger", "tapline_trace.log"), cluster)
        await serving.batcher.stop(5)
        return cluster, serving

    cluster, serving = asyncio.run(main())
    assert {flow.sensor for flow in serving.flows} == {"s1/worker-1", "s1/worker-2"}
    assert uids(cluster.lines("logger", "tapline.log")) == sorted(flow.uid for flow in serving.flows)
    assert [line["label"] for line in cluster.lines("logger", "tapline_trace.log")] == ["camera"]
    assert [path.parent.name for path in tmp_path.glob("*/tapline*.log")] == ["logger", "logger"]


@pytest.mark.parametrize("backend", backends())
def test_nothing_is_acknowledged_while_no_logger_is_there_to_write_it(backend, checkpoint_dir, tmp_path):
    async def main():
        cluster = Cluster(tmp_path, backend)
        serving = Serving(cluster, checkpoint_dir)
        serving.batcher.start()
        with cluster.stopped_at_the_end():
            async with serving.sensors.running(5):
                cluster.start("manager", "proxy", "worker-1", "worker-2")
                await until(lambda: len(serving.flows) == EXPECTED, cluster)
                await until(lambda: serving.sent and min(serving.sent.values()) >= 2, cluster)
                assert serving.sensor.pending_verdicts == EXPECTED
                cluster.start("logger")
                await until(serving.is_through, cluster)
            await until(lambda: len(cluster.lines("logger", "tapline.log")) >= EXPECTED, cluster)
        await serving.batcher.stop(5)
        return uids(cluster.lines("logger", "tapline.log")), sorted(flow.uid for flow in serving.flows)

    logged, classified = asyncio.run(main())
    assert logged == classified
