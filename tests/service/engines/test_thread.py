"""An engine that hangs, or gives what is no number, costs its flows their verdicts and nothing else."""

import asyncio
import subprocess
import sys
import threading

import numpy as np
import pytest

from tapline.service.engines.engine import EngineError, Scores
from tapline.service.engines.thread import EngineStalledError, EngineThread, hanging_engine
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_network import FlowNetwork
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tests.conftest import make_flows
from tests.paths import ROOT
from tests.service.command.test_cli import CAPTURE
from tests.service.traces.fakes import NumpyTraceEngine
from tests.service.traces.test_classifying import with_heads

pytestmark = pytest.mark.whole


def test_a_late_call_is_given_up_and_others_fail_at_once_until_it_ends():
    gate, thread = threading.Event(), EngineThread("the engine", 0.05)
    assert thread.call(lambda: 1) == 1
    with pytest.raises(EngineStalledError, match=r"the engine did not answer within 0\.05 seconds"):
        thread.call(gate.wait)
    assert hanging_engine()
    with pytest.raises(EngineStalledError):
        thread.call(lambda: 2)
    late = thread._late
    gate.set()
    assert late.over.wait(10)
    thread.timeout_seconds = 10
    assert thread.call(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 / 0)


def test_a_thread_that_is_closed_ends():
    thread = EngineThread("the engine", 60)
    worker = thread.call(threading.current_thread)
    thread.close()
    worker.join(60)
    assert not worker.is_alive()
    with pytest.raises(EngineStalledError, match="the service is stopping"):
        thread.call(lambda: 1)


def test_closing_tells_who_waits():
    gate, waits, found = threading.Event(), threading.Event(), []
    thread = EngineThread("the engine", 600)

    def work():
        waits.set()
        gate.wait()

    def caller():
        with pytest.raises(EngineStalledError, match="the service is stopping"):
            thread.call(work)
        found.append(True)

    other = threading.Thread(target=caller)
    other.start()
    assert waits.wait(10)
    thread.close()
    other.join(10)
    gate.set()
    assert found == [True]


def test_the_thread_ends_with_its_owner():
    thread = EngineThread("the engine", 10)
    thread.call(int)
    worker = thread._thread
    del thread
    worker.join(10)
    assert not worker.is_alive()


def hung(engine, body, **options):
    """Run `body` with a batcher whose engine has 0.05 s for a batch."""

    async def main():
        metrics = Metrics()
        supervisor = Supervisor(metrics, deaths_in_a_row=4, first_pause_seconds=0.001)
        classifier = Classifier(FlowNetwork(engine, EngineThread("engine 1", 0.05)))
        batcher = Batcher([classifier], metrics, supervisor=supervisor, max_queue_delay_ms=0, **options)
        batcher.start()
        try:
            async with asyncio.timeout(60):
                return await body(batcher, supervisor)
        finally:
            engine.gate.set()
            await batcher.stop(0)

    return asyncio.run(main())


def failures(batcher):
    return batcher._metrics.registry.get_sample_value("tapline_failures_total", {"reason": "BACKEND"}) or 0


def test_a_batch_that_hangs_is_answered_and_the_service_gives_up(engine):
    engine.gate.wait = lambda _, wait=engine.gate.wait: wait(60)
    engine.gate.clear()

    async def body(batcher, supervisor):
        found = await batcher.submit(make_flows(5))
        failing = batcher.failing
        await supervisor.gave_up.wait()
        return found, failing, failures(batcher), supervisor.failure

    found, failing, count, failure = hung(engine, body)
    assert (found, failing, count) == ([None] * 5, True, 5)
    assert failure == "engine 1 of random died 4 times in a row: EngineStalledError"
    assert engine.batches in ([], [5])  # one try: no halves that would hang, too


def test_an_engine_that_answers_again_serves_again(engine):
    async def body(batcher, supervisor):
        supervisor._deaths_in_a_row = 10**9
        engine.gate.clear()
        lost = await batcher.submit(make_flows(2))
        engine.gate.set()
        batcher.classifier.network.thread.timeout_seconds = 60
        found = [None]
        while found == [None]:
            found = await batcher.submit(make_flows(1))
        return lost, found, batcher.failing

    lost, found, failing = hung(engine, body)
    assert lost == [None, None]
    assert found[0].verdict.label == "dns"
    assert not failing


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["logits", "embeddings"])
def test_flows_whose_numbers_are_not_finite_fail_alone(engine, part, value):
    run = engine.run

    def broken(batch):
        scores = run(batch)
        getattr(scores, part)[1, 0] = value
        return scores

    engine.run = broken

    async def body(batcher, supervisor):
        batcher.classifier.network.thread.timeout_seconds = 60
        found = await batcher.submit(make_flows(3))
        return found, failures(batcher), batcher.failing

    found, count, failing = hung(engine, body)
    assert [outcome is None for outcome in found] == [False, True, False]
    assert (found[0].verdict.label, found[0].verdict.confidence) == ("dns", 0.858981)
    assert (count, failing) == (1, False)


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 64)), ((3, 3), (3, 63)), ((3,), (3, 64)), ((2, 3), (3, 64)), ((3, 3), (1, 64))]
)
def test_arrays_of_other_shapes_are_an_error(engine, shapes):
    engine.run = lambda batch: Scores(*(np.zeros(shape, np.float32) for shape in shapes))
    with pytest.raises(EngineError, match="the engine"):
        Classifier(engine).classify(make_flows(3))


def test_an_embedding_of_the_trace_encoder_that_is_no_number_costs_the_trace_its_flow(engine):
    traces = NumpyTraceEngine()
    embed = traces.embed

    def broken(flows):
        features = embed(flows)
        features[2] = np.nan
        return features

    traces.embed = broken
    found = Classifier(engine, trace_engines=[traces]).classify(with_heads(make_flows(4)))
    assert [outcome.features[0].data is None for outcome in found] == [False, False, True, False]
    assert all(outcome.verdict is not None for outcome in found)


HUNG = """
import sys
import numpy as np, onnxruntime
from onnx import TensorProto as T, helper as h
from tapline.service.command import cli
from tapline.service.engines.onnx_engine import OnnxEngine

def value(name, kind, shape=()):
    return h.make_tensor_value_info(name, kind, shape)

body = h.make_graph(
    [h.make_node("Identity", ["go"], ["going"]), h.make_node("Identity", ["x"], ["y"])], "body",
    [value("i", T.INT64), value("go", T.BOOL), value("x", T.FLOAT)], [value("going", T.BOOL), value("y", T.FLOAT)])
graph = h.make_graph(
    [h.make_node("Loop", ["most", "yes", "x"], ["y"], body=body)], "loop", [value("x", T.FLOAT)], [value("y", T.FLOAT)],
    [h.make_tensor("most", T.INT64, [], [2**62]), h.make_tensor("yes", T.BOOL, [], [True])])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
endless = onnxruntime.InferenceSession(model.SerializeToString())
run, calls = OnnxEngine.run, []
answers = int(sys.argv.pop(1))

def hang(self, batch):
    calls.append(1)
    if len(calls) > answers:
        print("hangs", flush=True)
        endless.run(None, {"x": np.array(1, np.float32)})
    return run(self, batch)

OnnxEngine.run = hang
cli.main()
"""

WARM_UP_CALLS = 2


def command(answers, *arguments):
    """A `tapline` whose engine hangs in native code after so many batches."""
    return [sys.executable, "-W", "error", "-c", HUNG, str(answers), *map(str, arguments)]


def test_a_command_whose_engine_hangs_ends_with_a_sentence():
    script = HUNG.replace(
        "cli.main()",
        "from tapline.service.inference import flow_network\nflow_network.BATCH_TIMEOUT_SECONDS = 0.2\ncli.main()",
    )
    arguments = [
        sys.executable,
        "-W",
        "error",
        "-c",
        script,
        "0",
        "classify",
        str(CAPTURE),
        "--traces",
        "none",
        "--cascade",
        "off",
    ]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.stderr == "the engine of flow-protocols did not answer within 0.2 seconds\n"
    assert result.returncode == 1


def test_a_service_whose_engine_hangs_gives_up():
    result = subprocess.run(
        command(WARM_UP_CALLS, "serve", "--port", 0, "--replay", CAPTURE, "--speed", 0, "--traces", "none",
                "--cascade", "off", "--engine-timeout-seconds", 0.5, "--shutdown-seconds", 1),
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert "gave up: engine 1 of flow-protocols died 8 times in a row: EngineStalledError" in result.stderr
    assert result.returncode == 1
    assert "terminate called" not in result.stderr


def test_a_service_whose_engine_hangs_stops_when_asked():
    with subprocess.Popen(
        command(WARM_UP_CALLS, "serve", "--port", 0, "--replay", CAPTURE, "--speed", 0, "--traces", "none",
                "--cascade", "off", "--engine-timeout-seconds", 3000, "--shutdown-seconds", 1),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        try:
            assert process.stdout.readline() == "hangs\n"
            process.terminate()
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert "event=stopped" in errors
    assert process.returncode == 0
