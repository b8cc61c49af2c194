"""Verdicts from logits: calibration, order, the unknown rule; of flows in their context."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tapline.models.checkpoint import Calibration, Checkpoint, Mm4flowNetwork, Unknown
from tapline.models.context import FlowContext, PortPrior
from tapline.models.flow import Flow
from tapline.models.verdict import context_terms, flow_probabilities, flow_verdicts, probabilities, verdicts

CHECKPOINT = Checkpoint(
    "mm4flow", "m", "1", Mm4flowNetwork(8, 1, 2, 8, 3), ["a", "b", "c"],
    calibration=Calibration(2.0), unknown=Unknown(0.5),
)  # fmt: skip
LOGITS = np.array([[4.0, 0.0, 0.0], [0.0, 0.2, 0.1]], np.float32)

AS_BEFORE = (
    b'[{"label":"a","nearest":"a","confidence":0.786986,"unknown":false,"alternatives":[{"label":"b","confidence":0.106507},'
    b'{"label":"c","confidence":0.106507}],"model":"m","version":"1","final":true},'
    b'{"label":"unknown","nearest":"b","confidence":0.350132,"unknown":true,"alternatives":[{"label":"c","confidence":0.333056},'
    b'{"label":"a","confidence":0.316812}],"model":"m","version":"1","final":true}]'
)
"""What `LOGITS` gave when checkpoints had no context."""

PORTS = PortPrior(
    {"tcp": {22: {0: 30}, 443: {1: 18, 2: 1, 3: 1}, 8443: {1: 10, 0: 1, 3: 10}, 9: {1: 30, 0: 1}, 9999: {3: 4}}},
    weight=0.5,
    temperature=4.0,
    threshold=0.9,
)
SERVED = replace(
    CHECKPOINT,
    network=Mm4flowNetwork(8, 1, 2, 8, 4),
    calibration=Calibration(1.0),
    unknown=Unknown(0.5, background=True),
    context=FlowContext({"tcp": [0, 1], "udp": [2]}, PORTS),
)
"""With a background class and a context."""


def flow(resp_p=443, proto="tcp"):
    return Flow("F", 0, 0, "10.0.0.1", 50_000, "192.0.2.1", resp_p, proto)


def judged(logits, flows, checkpoint=SERVED, **options):
    return flow_verdicts(np.float32(logits), flows, checkpoint, context_terms(checkpoint), **options)


def test_temperature_scales_before_softmax():
    e = np.exp(2.0)
    np.testing.assert_allclose(probabilities(LOGITS, CHECKPOINT)[0], [e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    large = np.array([[3e4, 0, 0]], np.float32)
    np.testing.assert_allclose(probabilities(large, CHECKPOINT), [[1, 0, 0]])


def test_best_first_and_unknown_below_the_threshold():
    sure, unsure = verdicts(LOGITS, CHECKPOINT, with_scores=True)
    assert (sure.label, sure.nearest, sure.unknown, sure.model, sure.version) == ("a", "a", False, "m", "1")
    assert sure.confidence == pytest.approx(0.786986, abs=1e-6)
    assert [other.label for other in unsure.alternatives] == ["c", "a"]
    assert (unsure.label, unsure.nearest, unsure.unknown) == ("unknown", "b", True)
    assert unsure.scores == pytest.approx({"a": 0.0, "b": 0.2, "c": 0.1})


@pytest.mark.parametrize("ports", [True, False, [True, False]])
def test_without_a_context_nothing_has_changed(ports):
    found = judged(LOGITS, [flow(), flow(proto="icmp")], CHECKPOINT, ports=ports)
    assert msgspec.json.encode(found) == msgspec.json.encode(verdicts(LOGITS, CHECKPOINT)) == AS_BEFORE
    shares = flow_probabilities(LOGITS, [flow(), flow()], CHECKPOINT, None, ports=ports)
    assert shares.tolist() == probabilities(LOGITS, CHECKPOINT).tolist()


def test_a_label_that_a_transport_bars_is_never_the_verdict():
    logits = [[1, 2, 30, 0]] * 3
    tcp, udp, icmp = judged(logits, [flow(1), flow(1, "udp"), flow(0, "icmp")], ports=False)
    assert (tcp.nearest, udp.nearest) == ("b", "c")
    assert [other.confidence for other in udp.alternatives] == [0, 0]
    assert icmp.unknown  # every label is barred, the background is not


def test_transports_alone_are_judged_by_the_checkpoints_own_rule():
    alone = replace(SERVED, context=FlowContext({"tcp": [0, 1]}))
    on, off = judged([[1, 2, 30, 0]], [flow()], alone), judged([[1, 2, 30, 0]], [flow()], alone, ports=False)
    assert on == off
    e = np.exp([1, 2, 0])
    assert on[0].confidence == pytest.approx(e[1] / e.sum(), abs=1e-6)
    assert "port" not in msgspec.json.encode(on).decode()


def test_without_ports_a_verdict_has_temperature_and_threshold_of_its_own():
    (on,), (off,) = judged([[8, 0, 0, 0]], [flow(22)]), judged([[8, 0, 0, 0]], [flow(22)], ports=False)
    e = np.exp(np.array([8, 0, 0]) / 4)  # "c" is barred
    assert off.confidence == pytest.approx(e[0] / e.sum(), abs=1e-6)
    assert (on.label, on.nearest, off.label, off.nearest) == ("a", "a", "unknown", "a")
    assert on.confidence > 0.99
    assert (on.port_label, off.port_label) == ("a", "a")


def test_each_flow_is_judged_as_it_asks_for_and_bad_numbers_cost_their_own(rng):
    logits = rng.normal(size=(40, 4)).astype(np.float32) * 3
    logits[7, 1] = np.nan
    flows = [flow((22, 443, 9999, 7)[n % 4], ("tcp", "udp", "icmp")[n % 3]) for n in range(40)]
    asked = [n % 5 < 2 for n in range(40)]
    on, off = judged(logits, flows), judged(logits, flows, ports=False)
    mixed = judged(logits, flows, ports=asked)
    assert mixed == [a if wants else b for a, b, wants in zip(on, off, asked, strict=True)]
    assert [n for n, verdict in enumerate(mixed) if verdict is None] == [7]
    assert on[4] != off[4]
    assert [judged(logits[n : n + 1], flows[n : n + 1], ports=asked[n])[0] for n in range(40)] == mixed
    assert judged(np.zeros((0, 4)), []) == []


@pytest.mark.parametrize(
    ("logits", "port", "port_label", "unexpected"),
    [
        ([30, 0, 0, 0], 443, "b", True),  # "a" was never seen on 443, "b" was in 90 %
        ([0, 30, 0, 0], 443, "b", False),  # what the port says
        ([3.2, 0, 0, 0], 443, "b", False),  # "a", but with a confidence below 0.9
        ([0, 0, 0, 30], 443, "b", False),  # the background: unknown
        ([30, 0, 0, 0], 8443, "b", False),  # less than half of the captures hold "b"
        ([30, 0, 0, 0], 9, "b", True),  # 1 of 31 captures holds "a"
        ([0, 30, 0, 0], 22, "a", True),
        ([30, 0, 0, 0], 9999, None, False),  # nothing but background was seen there
        ([30, 0, 0, 0], 7, None, False),
    ],
)
@pytest.mark.parametrize("ports", [True, False])
def test_a_port_is_unexpected_where_label_and_port_are_sure_of_different_things(
    logits, port, port_label, unexpected, ports
):
    (verdict,) = judged([logits], [flow(port)], ports=ports)
    assert (verdict.port_label, verdict.unexpected_port) == (port_label, unexpected)
    form = msgspec.json.decode(msgspec.json.encode(verdict))
    assert (form["port_label"], form["unexpected_port"]) == (port_label, unexpected)


def test_a_label_that_some_captures_hold_on_the_port_is_expected_there():
    seen = replace(SERVED, context=FlowContext({"tcp": [0, 1]}, PortPrior({"tcp": {443: {1: 19, 0: 1}}})))
    assert judged([[30, 0, 0, 0]], [flow()], seen)[0].unexpected_port is False  # 5 % of them
    rare = replace(SERVED, context=FlowContext({"tcp": [0, 1]}, PortPrior({"tcp": {443: {1: 20, 0: 1}}})))
    assert judged([[30, 0, 0, 0]], [flow()], rare)[0].unexpected_port is True


def test_scores_are_the_networks_own():
    (verdict,) = judged([[1, 2, 3, 4]], [flow()], with_scores=True)
    assert verdict.scores == {"a": 1, "b": 2, "c": 3}


@given(st.integers(0, 65535), st.sampled_from([22, 443, 8443, 9, 9999]))
def test_a_forged_port_does_not_carry_a_verdict_that_is_sure(honest, forged):
    lead = 2 * 0.5 * 6.2  # what one port is worth to two labels, at that weight
    for sure in (0, 1):
        logits = np.zeros((2, 4), np.float32)
        logits[:, sure] = lead + 0.1
        found = judged(logits, [flow(honest), flow(forged)])
        assert [verdict.label for verdict in found] == [CHECKPOINT.labels[sure]] * 2
