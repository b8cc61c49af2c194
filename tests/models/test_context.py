"""The context of a flow: what transports bar, what ports say, and how little a forged port is worth."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.models.context import BARRED, ContextTerms, FlowContext, PortPrior, SaidByPort
from tapline.models.flow import Flow

PORTS = {"tcp": {22: {0: 30}, 443: {1: 18, 2: 1, 3: 1}, 9999: {3: 4}}, "udp": {443: {1: 6, 2: 6}, 53: {2: 1}}}
CONTEXT = FlowContext({"tcp": [0, 1], "udp": [2, 1]}, PortPrior(PORTS))
MOST = np.log((0.9 + 0.1 / 20) / (0.1 / 20))
"""What a port is worth to a class at most, at weight 1."""


def flow(proto="tcp", resp_p=443, orig_p=50_000):
    return Flow("F", 0, 0, "10.0.0.1", orig_p, "192.0.2.1", resp_p, proto)


def terms(context=CONTEXT, background=True):
    return ContextTerms(context, 3, 3 + background)


def test_a_label_is_barred_on_transports_where_it_was_never_seen():
    found = terms().transports([flow("tcp"), flow("udp"), flow("icmp"), flow("132")])
    assert found.tolist() == [[0, 0, BARRED, 0], [BARRED, 0, 0, 0], [*[BARRED] * 3, 0], [*[BARRED] * 3, 0]]
    assert terms(FlowContext({"udp": [2, 1]}), background=False).transports([flow("udp")]).tolist() == [[BARRED, 0, 0]]
    assert terms().transports([]).shape == (0, 4)


def test_a_port_says_the_label_that_most_captures_hold_and_never_the_background():
    said = terms().said_by_port
    assert said(flow()) == SaidByPort(1, {1: 0.9, 2: 0.05})
    assert said(flow("udp")) == SaidByPort(1, {1: 0.5, 2: 0.5})
    assert said(flow(resp_p=9999)) is None
    assert said(flow(resp_p=50_000, orig_p=22)) == SaidByPort(0, {0: 1.0})
    assert said(flow("icmp", 443)) is None
    assert terms(FlowContext({"tcp": [0]})).said_by_port(flow()) is None
    passing = FlowContext({"tcp": [0, 2]}, PortPrior({"tcp": {50_001: {0: 1, 2: 1}, 50_002: {0: 2, 3: 3}}}))
    assert terms(passing).said_by_port(flow(resp_p=50_001)) is None  # one capture each
    assert terms(passing).said_by_port(flow(resp_p=50_002)) == SaidByPort(0, {0: 0.4})


def test_a_port_lifts_the_labels_that_were_seen_on_it():
    on_22, on_443, elsewhere, icmp = terms().ports([flow(resp_p=22), flow(), flow(resp_p=1), flow("icmp", 8, 0)])
    assert on_22[0] > elsewhere[0]
    assert on_443[1] > elsewhere[1]
    assert on_22[1:].tolist() == elsewhere[1:].tolist()
    assert icmp.tolist() == [0, 0, 0, 0]
    halved = terms(msgspec.structs.replace(CONTEXT, ports=PortPrior(PORTS, weight=0.5))).ports([flow()])
    np.testing.assert_allclose(halved[0], on_443 / 2, rtol=1e-6)


holders = st.dictionaries(
    st.integers(0, 65535), st.dictionaries(st.integers(0, 3), st.integers(1, 2**31 - 1), max_size=4), max_size=6
)


@given(holders, st.floats(0, 1), st.integers(0, 65535), st.integers(0, 65535), st.data())
def test_a_forged_port_is_worth_no_more_than_its_bound(held, weight, orig_p, resp_p, data):
    known = sorted(held) or [1]
    forged = flow(resp_p=data.draw(st.sampled_from(known)), orig_p=data.draw(st.sampled_from([orig_p, *known])))
    prior = FlowContext({"tcp": [0]}, PortPrior({"tcp": held}, weight=weight))
    honest, other = terms(prior).ports([flow(resp_p=resp_p, orig_p=orig_p), forged])
    assert np.isfinite([honest, other]).all()
    assert np.abs(honest - other).max() <= weight * MOST + 1e-5
    assert pytest.approx(5.2, abs=0.02) == MOST
