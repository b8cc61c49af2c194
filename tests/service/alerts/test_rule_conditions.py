"""Every condition of a rule: facts that meet it, and facts that do not."""

import pytest

from tapline.service.alerts.rule_models import RULES, Rule
from tests.service.alerts.ruled import Ruled, rule

UNEXPECTED = {"port_label": "tls", "unexpected_port": True}

FLOWS = [
    # condition, value, meets, does not; of each the fields of the flow and those of its verdict
    ("label", '"tls"', ({}, {}), ({}, {"nearest": "ssh"})),
    ("label", '"TLS"', ({}, {}), ({}, {"unknown": True})),
    ("label", '["s*", "dns"]', ({}, {"nearest": "ssh"}), ({}, {})),
    ("label", '"!tls"', ({}, {"nearest": "ssh"}), ({}, {})),
    ("label", '["*", "!tls"]', ({}, {"nearest": "ssh"}), ({}, {})),
    ("label", '"unknown"', ({}, {"unknown": True}), ({}, {})),
    ("nearest", '"tls"', ({}, {"unknown": True}), ({}, {"nearest": "ssh"})),
    ("unknown", "true", ({}, {"unknown": True}), ({}, {})),
    ("unknown", "false", ({}, {}), ({}, {"unknown": True})),
    ("min_confidence", "0.9", ({}, {"confidence": 0.9}), ({}, {"confidence": 0.89})),
    ("max_confidence", "0.5", ({}, {"confidence": 0.5}), ({}, {"confidence": 0.51})),
    ("stage", '"final"', ({}, {}), ({}, {"final": False})),
    ("stage", '"early"', ({}, {"final": False}), ({}, {})),
    ("model", '"rand*"', ({}, {}), ({}, {"model": "other"})),
    ("source", '"ws://127.*"', ({}, {}), None),
    ("source", '"!ws://127.*"', None, ({}, {})),
    ("sensor", '"gate"', ({}, {}), ({"sensor": "lab"}, {})),
    ("proto", '"tcp"', ({}, {}), ({"proto": "udp"}, {})),
    ("originator", '"10.0.0.0/8"', ({}, {}), ({"orig_h": "192.0.2.9"}, {})),
    ("originator", '["!10.0.0.0/8"]', ({"orig_h": "192.0.2.9"}, {}), ({}, {})),
    ("originator", '["10.0.0.0/8", "!10.0.0.5"]', ({"orig_h": "10.0.0.6"}, {}), ({}, {})),
    ("originator", '"2001:db8::/32"', ({"orig_h": "2001:db8::1", "resp_h": "2001:db9::1"}, {}), ({}, {})),
    ("responder", '"192.0.2.1"', ({}, {}), ({"resp_h": "192.0.2.2"}, {})),
    ("host", '"192.0.2.0/24"', ({}, {}), ({"resp_h": "10.0.0.9"}, {})),
    ("host", '"10.0.0.0/8"', ({}, {}), ({"orig_h": "192.0.2.9"}, {})),
    ("host", '"!192.0.2.0/24"', ({"resp_h": "10.0.0.9"}, {}), ({}, {})),
    ("port", "443", ({}, {}), ({"resp_p": 80}, {})),
    ("port", '[80, "440-449"]', ({"resp_p": 449}, {}), ({"resp_p": 450}, {})),
    ("originator_port", '"40000-40001"', ({}, {}), ({"orig_p": 39_999}, {})),
    ("unexpected_port", "true", ({}, UNEXPECTED), ({}, {})),
    ("unexpected_port", "false", ({}, {}), ({}, UNEXPECTED)),
    ("port_label", '"tls"', ({}, UNEXPECTED), ({}, {})),
    ("server_name", '"*.example.org"', ({"server_name": "a.b.Example.org"}, {}), ({"server_name": "example.org"}, {})),
    ("server_name", '"example.org"', ({"server_name": "example.org"}, {}), ({"server_name": "a.example.org"}, {})),
    ("server_name", '"ex?mple.[on]*"', ({"server_name": "example.org"}, {}), ({"server_name": "exxample.org"}, {})),
    ("server_name", '"*"', ({"server_name": "a"}, {}), ({}, {})),  # one that there is
    ("server_name", '"!*"', ({}, {}), ({"server_name": "a"}, {})),
    ("port_label", '"*"', ({}, UNEXPECTED), ({}, {})),
    ("sensor", '"*"', ({}, {}), ({"sensor": ""}, {})),
    ("server_name", '"!*.org"', ({"server_name": "example.com"}, {}), ({"server_name": "example.org"}, {})),
    ("during", '{days = "tue", hours = "22:00-23:00"}', ({}, {}), None),
    ("during", '{days = "mon"}', None, ({}, {})),
    ("outside", '{hours = "08:00-18:00"}', ({}, {}), None),
    ("outside", '[{days = "tue"}]', None, ({}, {})),
    ("enabled", "false", None, ({}, {})),
]
TRACES = [
    ("subject", '"00:17:88:*"', {}, {"subject": "10.0.0.5"}),
    ("host", '"10.0.0.0/8"', {"subject": "10.0.0.5"}, {}),
    ("host", '"10.0.0.0/8"', {"subject": "192.0.2.1 - 10.0.0.5"}, {"subject": "192.0.2.1 - 192.0.2.2"}),
    ("suspicious", "true", {"suspicious": True}, {}),
    ("suspicious", "false", {"suspicious": False}, {"suspicious": None}),
    ("min_suspicion", "0.75", {"suspicion": 0.75}, {"suspicion": 0.74}),
    ("min_suspicion", "0.75", {"suspicion": 0.8}, {"suspicion": None}),
    ("label", '"camera"', {}, {"nearest": "plug"}),
    ("unknown", "true", {"unknown": True}, {}),
    ("stage", '"final"', {}, {"final": False}),
]
DRIFTS = [
    ("measure", '["labels", "unknown"]', {}, {"measure": "embedding"}),
    ("against", '"baseline"', {}, {"against": "last week"}),
    ("min_distance", "0.1", {"distance": 0.11}, {"distance": 0.09}),
    ("severity", '"low"', {"distance": 0.26}, {"distance": 0.25}),  # the limit of the measure itself
    ("model", '"flow-*"', {}, {"model": "intrusion"}),
]


@pytest.mark.parametrize(("key", "value", "meets", "not_"), FLOWS)
def test_flows(tmp_path, key, value, meets, not_):
    for wanted, fields in ((1, meets), (0, not_)):
        if fields is not None:
            assert len(Ruled(tmp_path, rule(**{key: value})).flow(said=fields[1], **fields[0])) == wanted


@pytest.mark.parametrize(("key", "value", "meets", "not_"), TRACES)
def test_traces(tmp_path, key, value, meets, not_):
    text = rule(kind='"trace"', **{key: value})
    assert len(Ruled(tmp_path, text).trace(**meets)) == 1
    assert Ruled(tmp_path, text).trace(**not_) == []


@pytest.mark.parametrize(("key", "value", "meets", "not_"), DRIFTS)
def test_drift(tmp_path, key, value, meets, not_):
    text = rule(kind='"drift"', **{key: value})
    assert len(Ruled(tmp_path, text).drift(**meets)) == 1
    assert Ruled(tmp_path, text).drift(**not_) == []


def test_every_condition_is_tested():
    elsewhere = {
        "name",
        "kind",
        "comment",
        "message",
        "timezone",
        "suppress",
        "allow",
        "rate",
        "unknown_share",
        "severity",
    }
    tested = {"flow": FLOWS, "trace": TRACES, "drift": DRIFTS}
    everywhere = {case[0] for case in FLOWS}
    for kind, model in RULES.items():
        wanted = set(model.model_fields) - elsewhere
        assert wanted - {case[0] for case in tested[kind]} - everywhere == set(), kind
    assert elsewhere <= {key for model in RULES.values() for key in model.model_fields} | set(Rule.model_fields)


def test_all_conditions_must_hold(tmp_path):
    ruled = Ruled(tmp_path, rule(label='"tls"', port="443", originator='"10.0.0.0/8"'))
    assert ruled.flow(uid="a", resp_p=80) == []
    assert ruled.flow(uid="b", said={"nearest": "ssh"}) == []
    assert ruled.flow(uid="c", orig_h="192.0.2.9") == []
    assert len(ruled.flow(uid="d")) == 1


def test_rules_are_about_their_kind_alone(tmp_path):
    kinds = "".join(rule(kind=f'"{kind}"').replace('"r"', f'"{kind}"') for kind in RULES)
    ruled = Ruled(tmp_path, kinds)
    assert [alert.rule for alert in ruled.flow()] == ["flow"]
    assert [alert.rule for alert in ruled.trace()] == ["trace"]
    assert [alert.rule for alert in ruled.drift()] == ["drift"]


def test_a_label_that_a_list_names_follows_the_list(tmp_path):
    """Verdicts that say the same share an answer, but not where the answer changes with time."""
    text = '[list.old]\nof = "labels"\nentries = [{value = "tls", until = 2023-11-14T22:13:30Z}]\n' + rule(
        label='"@old"', suppress="{seconds = 0}"
    )
    ruled = Ruled(tmp_path, text)
    assert [len(ruled.flow(seconds)) for seconds in (9.9, 10)] == [1, 0]
