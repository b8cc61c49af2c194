import asyncio

import msgspec
import pytest

from tapline.models.flow import FlowError
from tapline.service.dashboard.what_if import first, what_if
from tapline.service.engines.loading import load_engine
from tapline.service.history.past import PastFlow
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.metrics import Metrics
from tapline.service.results.records import feature_lines
from tests.conftest import make_flows


def past(flow, verdict):
    line = next(iter(feature_lines([flow], tokens=False)))
    own = {"number", "seen_us", "source", "verdict"}
    fields = {name: getattr(line, name) for name in PastFlow.__struct_fields__ if name not in own}
    return PastFlow(number=1, seen_us=1, source="bus", verdict=verdict, **fields)


def test_parts_of_a_flow_end_where_their_packets_do():
    flow = msgspec.structs.replace(
        make_flows(1)[0], payload_lengths=[5, -7, 6, -1000], up=2, down=2, orig_bytes=b"a" * 11, resp_bytes=b"b" * 256
    )
    part = first(flow, 2)
    assert (part.payload_lengths, part.up, part.down) == ([5, -7], 1, 1)
    assert (part.orig_bytes, part.resp_bytes) == (b"a" * 5, b"b" * 7)
    assert first(flow, 3).orig_bytes == b"a" * 11


def test_the_model_is_asked_about_parts(context_dir):
    async def asked():
        batcher = Batcher([Classifier(load_engine("onnx", context_dir, 1), min_packets=2)], Metrics())
        batcher.start()
        try:
            flow = next(flow for flow in make_flows(40) if len(flow.payload_lengths) > 8 and flow.orig_bytes)
            [outcome] = await batcher.classify([flow])
            [plain] = await batcher.classify([flow], ports=False)
            return outcome.verdict, plain.verdict, await what_if(past(flow, outcome.verdict), batcher)
        finally:
            await batcher.stop(1)

    verdict, without_port, parts = asyncio.run(asked())
    found = {part.shown: part.verdict for part in parts}
    assert found["the first packet"] is None  # the model wants two
    assert found["the first 8 packets with payload"] is not None
    assert "payload lengths alone" in found
    assert found["all of it"] == verdict
    assert found["all of it, without the port"] == without_port


def test_a_flow_of_which_nothing_was_kept():
    flow = past(make_flows(1)[0], None)
    with pytest.raises(FlowError, match="no payload lengths"):
        asyncio.run(what_if(msgspec.structs.replace(flow, payload_lengths=[]), None))
