"""Flows with ports that are not theirs."""

import numpy as np

from tapline.models.flow import Flow
from tapline.training.data.parquet import Sample
from tapline.training.data.store import store
from tapline.training.evaluation.other_ports import forged_ports, random_ports

TRANSPORTS = ["udp"] * 60 + ["tcp"] * 60 + ["icmp", "132"]
TRUTH = np.array([0] * 40 + [1] * 20 + [2] * 59 + [3] + [4, 4])


def flows(tmp_path):
    """Each flow from port 1000 + n to port n."""
    samples = (
        Sample("c", "x", None, Flow("", 0, 0, "192.0.2.1", 1000 + n, "192.0.2.2", n, proto, 1, 0, [9], b"x", b""))
        for n, proto in enumerate(TRANSPORTS)
    )
    return store(samples, tmp_path).flows


def test_random_ports_are_drawn_where_there_are_ports(tmp_path):
    changed = random_ports(flows(tmp_path), np.random.default_rng(0)).ports
    assert (changed[:120] >= 1024).all()
    assert len(np.unique(changed[:120])) > 230
    assert changed[120].tolist() == [1120, 120]
    assert (changed[121] >= 1024).all()
    assert changed.tolist() == random_ports(flows(tmp_path), np.random.default_rng(0)).ports.tolist()


def test_forged_ports_are_those_of_another_flow_of_the_transport(tmp_path):
    changed = forged_ports(flows(tmp_path), TRUTH, np.random.default_rng(0)).ports.astype(int)
    source = changed[:, 1]
    assert (changed[:, 0] == 1000 + source).all()
    assert (source[:60] < 60).all()
    assert ((source[60:120] >= 60) & (source[60:120] < 120)).all()
    assert (source[:120] != np.arange(120)).all()
    assert source[120:].tolist() == [120, 121]
    assert 20 < (source[60:120] == 119).sum() < 40  # the only flow of its label, which is drawn as often as the other
