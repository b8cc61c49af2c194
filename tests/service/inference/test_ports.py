"""Whether ports are read is chosen flow by flow, also in one batch; an outcome is kept only for the same context."""

import asyncio

import pytest
from msgspec.structs import replace

from tapline.models.checkpoint import read_checkpoint
from tapline.models.verdict import context_terms, flow_verdicts
from tapline.service.engines.loading import load_engine
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.metrics import Metrics
from tests.conftest import make_flows
from tests.service.conftest import FakeEngine


def on_443(count):
    return [replace(flow, proto="tcp", resp_p=443) for flow in make_flows(count)]


@pytest.fixture
def engine(context_dir):
    """It calls every flow "dns"."""
    return FakeEngine(read_checkpoint(context_dir))


def test_a_classifier_reads_ports_unless_it_is_told_otherwise(context_dir):
    engine, flows = load_engine("onnx", context_dir), on_443(4)
    on, off = ([outcome.verdict for outcome in Classifier(engine, ports=p).classify(flows)] for p in (True, False))
    assert on == [outcome.verdict for outcome in Classifier(engine).classify(flows)]
    assert on != off
    assert {verdict.port_label for verdict in [*on, *off]} == {"tls"}
    chosen = [True, False, False, True]
    for default in (True, False):
        found = Classifier(engine, ports=default).with_traces([]).classify(flows, chosen)
        assert [outcome.verdict for outcome in found] == [on[0], off[1], off[2], on[3]]
        kept = Classifier(engine, ports=default).with_traces([]).classify(flows)
        assert [outcome.verdict for outcome in kept] == (on if default else off)


def test_a_flow_that_the_engine_fails_on_takes_nothing_of_the_others_choice(engine):
    engine.poison = 3 + 2  # ps tokens of the flow of three lengths
    flows = [replace(flow, payload_lengths=[9] * (3 if n == 2 else 2)) for n, flow in enumerate(on_443(5))]
    chosen = [True, False, True, False, True]
    found = Classifier(engine).classify_each(flows, chosen)
    assert found[2] is None
    good = [0, 1, 3, 4]
    alone = [Classifier(engine, ports=chosen[n]).classify([flows[n]])[0].verdict for n in good]
    assert [found[n].verdict for n in good] == alone
    assert alone[0] != alone[1]


def test_callers_that_want_ports_and_callers_that_do_not_share_a_batch(engine):
    checkpoint, metrics = engine.checkpoint, Metrics()

    async def body():
        batcher = Batcher([Classifier(engine, ports=False)], metrics, max_batch_size=9, max_queue_delay_ms=10_000)
        batcher.start()
        try:
            async with asyncio.timeout(20):
                asked = [batcher.submit(on_443(3), ports=ports) for ports in (True, False, None)]
                return [[outcome.verdict for outcome in await found] for found in asked]
        finally:
            await batcher.stop(5)

    on, off, default = asyncio.run(body())
    assert engine.batches == [9]
    logits, terms = engine.run(range(3)).logits, context_terms(checkpoint)
    expected = [flow_verdicts(logits, on_443(3), checkpoint, terms, ports=ports) for ports in (True, False)]
    assert [on, off] == [[replace(verdict, final=True) for verdict in found] for found in expected]
    assert default == off
    assert on != off
    assert [on[0].unexpected_port, off[0].unexpected_port] == [True, False]  # without ports it is less sure
    counted = metrics.registry.get_sample_value("tapline_unexpected_ports_total", {"model": "random", "stage": "final"})
    assert counted == 3


def test_an_outcome_is_remembered_for_its_ports_only_where_ports_count(engine, checkpoint_dir):
    with_context, without = Classifier(engine), Classifier(FakeEngine(read_checkpoint(checkpoint_dir)))
    (flow,) = on_443(1)
    changed = [replace(flow, resp_p=22), replace(flow, orig_p=22), replace(flow, proto="udp")]
    assert with_context.input_hash(replace(flow, uid="other")) == with_context.input_hash(flow)
    assert all(with_context.input_hash(other) != with_context.input_hash(flow) for other in changed)
    assert all(without.input_hash(other) == without.input_hash(flow) for other in changed)
