"""Ports on and off per request: each gets what it asked for, also where requests share a batch."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tapline.service.api import schemas
from tapline.service.results.records import feature_lines
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.conftest import make_flows
from tests.paths import DATA
from tests.service.api.client import api_client

pytestmark = pytest.mark.whole

CAPTURE = DATA / "captures" / "android.pcap"
ROUTES = ("/v1/classify/flows", "/v1/classify/pcap")
FLOWS = 40


def body(count=FLOWS):
    flows = [msgspec.structs.replace(flow, proto="tcp", resp_p=443) for flow in make_flows(count)]
    return msgspec.json.encode({"flows": list(feature_lines(flows, tokens=False))})


def served(directory, **settings):
    return Service(Settings(checkpoint=directory, traces=["none"], **settings))


def ask(client, route, query=""):
    if route.endswith("pcap"):
        answer = client.post(route + query, content=CAPTURE.read_bytes())
    else:
        answer = client.post(route + query, content=body(), headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer.json()["flows"]


def verdicts(flows):
    return [flow["verdict"] for flow in flows]


@pytest.fixture(scope="module", params=["on", "off"])
def client(request, context_dir):
    with api_client(served(context_dir, ports=request.param)) as client:
        client.default = request.param
        yield client


@pytest.mark.parametrize("route", ROUTES)
def test_a_request_says_whether_ports_are_read_and_the_service_where_it_does_not(client, route):
    on, off, plain = (verdicts(ask(client, route, query)) for query in ("?ports=on", "?ports=off", ""))
    assert on != off
    assert plain == (on if client.default == "on" else off)
    assert [verdict["port_label"] for verdict in on] == [verdict["port_label"] for verdict in off]
    assert {verdict["port_label"] for verdict in on} >= {"tls"}
    assert {type(verdict["unexpected_port"]) for verdict in [*on, *off]} == {bool}


def test_answers_have_the_documented_form(client):
    flows = ask(client, ROUTES[1])
    assert [schemas.ClassifiedFlow.model_validate(flow).verdict.port_label for flow in flows] == [
        flow["verdict"]["port_label"] for flow in flows
    ]
    assert None in {flow["verdict"]["port_label"] for flow in flows}  # IGMP, ports that say nothing


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("value", ["maybe", "", "ON"])
def test_another_value_is_refused(client, route, value):
    answer = client.post(route, params={"ports": value}, content=body(1), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "ports" in answer.json()["error"]["message"]


def test_unexpected_ports_are_counted(client):
    def counted():
        labels = {"model": "random", "stage": "final"}
        registry = client.app.state.service.metrics.registry
        return registry.get_sample_value("tapline_unexpected_ports_total", labels) or 0

    before = counted()
    found = sum(verdict["unexpected_port"] for verdict in verdicts(ask(client, ROUTES[0], "?ports=on")))
    assert counted() == before + found
    assert found > 0


def test_requests_with_and_without_ports_share_a_batch(context_dir):
    with api_client(served(context_dir)) as client:
        alone = [verdicts(ask(client, ROUTES[0], query)) for query in ("?ports=on", "?ports=off")]
    together = served(context_dir, max_batch_size=2 * FLOWS, max_queue_delay_ms=10_000)
    with api_client(together) as client, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, client, ROUTES[0], query) for query in ("?ports=on", "?ports=off")]
        found = [verdicts(answer.result(30)) for answer in asked]
        assert together.metrics.registry.get_sample_value("tapline_batch_flows_count") == 1
    assert [[(v["label"], v["unknown"], v["port_label"]) for v in each] for each in found] == [
        [(v["label"], v["unknown"], v["port_label"]) for v in each] for each in alone
    ]
    for ours, others in zip(found, alone, strict=True):
        assert [v["confidence"] for v in ours] == pytest.approx([v["confidence"] for v in others], abs=1e-4)


def test_a_model_without_a_context_says_nothing_of_ports(checkpoint_dir):
    with api_client(served(checkpoint_dir)) as client:
        on, off = (ask(client, ROUTES[0], query) for query in ("?ports=on", "?ports=off"))
        assert on == off
        assert not any("port" in key for verdict in verdicts(on) for key in verdict)
