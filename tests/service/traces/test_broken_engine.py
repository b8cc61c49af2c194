"""A trace engine that gives no numbers, or no answer, costs traces their verdicts, and the service says so."""

import asyncio
import threading

import numpy as np
import pytest

from tapline.service.engines.engine import EngineError
from tapline.service.engines.thread import EngineThread
from tapline.service.engines.trace_engine import TraceScores
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.traces.scorer import TraceScorer
from tests.service.traces.fakes import WIDTH, NumpyTraceEngine
from tests.service.traces.test_classifying import job
from tests.service.traces.test_live_traces import until

pytestmark = pytest.mark.whole


def jobs(count):
    return [job(f"s{n}", np.random.default_rng(n).normal(size=(n + 1, WIDTH))) for n in range(count)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["logits", "importance"])
def test_traces_whose_numbers_are_not_finite_fail_alone(part, value):
    engine = NumpyTraceEngine()
    score = engine.score

    def broken(traces):
        scores = score(traces)
        getattr(scores, part)[1][0] = value
        return scores

    engine.score = broken
    found = TraceScorer(engine).score_each(jobs(3))
    assert [trace is None for trace in found] == [False, True, False]
    assert 0 < found[0].verdict.confidence <= 1
    assert len(engine.scored) == 1  # the others are not computed again


@pytest.mark.parametrize(("logits", "shares"), [((2, 4), (1, 2)), ((1, 3), (1, 2)), ((2, 3), (2, 2))])
def test_scores_of_other_shapes_are_an_error(logits, shares):
    engine = NumpyTraceEngine()
    engine.score = lambda traces: TraceScores(
        np.zeros(logits, np.float32), [np.zeros(length, np.float32) for length in shares]
    )
    with pytest.raises(EngineError, match="do not fit the 2 traces"):
        TraceScorer(engine).score(jobs(2))


def test_an_engine_that_hangs_is_asked_once():
    engine, gate, asked = NumpyTraceEngine(), threading.Event(), []
    score = engine.score

    def hangs(traces):
        asked.append(len(traces))
        gate.wait(60)
        return score(traces)

    engine.score = hangs
    scorer = TraceScorer(engine, timeout_seconds=0.05)
    assert scorer.score_each(jobs(4)) == [None] * 4
    late = scorer.thread._late
    assert scorer.score_each(jobs(2)) == [None] * 2
    assert asked == [4]
    gate.set()
    assert late.over.wait(10)
    scorer.thread.timeout_seconds = 60
    assert None not in scorer.score_each(jobs(2))


def test_the_service_is_not_ready_while_it_hangs_and_gives_up(checkpoint_dir, trace_checkpoint_dir):
    gate = threading.Event()

    async def main():
        service = Service(Settings(checkpoint=checkpoint_dir, traces=[str(trace_checkpoint_dir)]))
        service.supervisor._first_pause_seconds = 0.001
        async with asyncio.timeout(60), service.running():
            ready = service.not_ready()
            (scorer,) = service.trace_models.scorers.values()
            scorer.thread = EngineThread("the trace engine", 0.05)
            scorer.engine.score = lambda traces: gate.wait(60)
            width = scorer.checkpoint.network.feature_size
            hung = await asyncio.to_thread(scorer.score_each, [job("s", np.zeros((1, width)))])
            await until(lambda: service.supervisor.parts["trace engine random-tracegram"].deaths)
            said = service.not_ready()
            await service.supervisor.gave_up.wait()
            gate.set()
            return ready, hung, said, service.supervisor.failure

    ready, hung, said, failure = asyncio.run(main())
    assert (ready, hung) == (None, [None])
    assert said == "trace engine random-tracegram is down: EngineStalledError"
    assert failure == "trace engine random-tracegram died 8 times in a row: EngineStalledError"
