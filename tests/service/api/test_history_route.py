"""`/v1/flows` and `/v1/traces`: what the live path decided comes back through filters and pages, and by its number."""

import threading
import time

import pytest

from tapline.service.api import schemas
from tapline.service.history import sums
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.paths import DATA
from tests.service.api.client import api_client
from tests.service.history.kept import BUS, WAIT_SECONDS, flow, trace, verdict
from tests.service.history.test_history import VARIED

pytestmark = pytest.mark.whole

CAPTURE = DATA / "captures" / "android.pcap"


def service_of(checkpoint, tmp_path, **options):
    options = {"history": "sqlite", "data_dir": tmp_path / "data", "traces": ["none"], **options}
    return Service(Settings(checkpoint=checkpoint, **options))


def wait(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client(checkpoint_dir, tmp_path_factory):
    """A service whose history holds some flows and traces, of an earlier run."""
    folder = tmp_path_factory.mktemp("history")
    service = service_of(checkpoint_dir, folder, history_content=True)
    with api_client(service):
        for one, said in VARIED:
            service.history.flow(BUS, one, said)
        service.history.flow(BUS, flow("content", orig_bytes=b"GET"), verdict("http"))
        for number in range(3):
            service.history.trace(trace(subject=f"10.0.0.{number}", suspicious=number == 2, suspicion=0.5))
    with api_client(service_of(checkpoint_dir, folder)) as client:
        yield client


def get(client, path, status=200, **asked):
    answer = client.get(path, params=asked)
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]["message"]


def test_flows_have_the_documented_form_and_come_page_by_page(client):
    found, cursor = [], {}
    while True:
        page = get(client, "/v1/flows", limit=4, **cursor)
        schemas.PastFlows.model_validate(page)
        found += page["flows"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert [one["uid"] for one in found] == ["content", *"edcba"]
    assert found[-1] == get(client, f"/v1/flows/{found[-1]['number']}")
    assert found[-1]["verdict"]["label"] == "tls"
    assert "port_label" in found[-1]["verdict"]
    assert "port_label" not in found[0]["verdict"]
    assert get(client, "/v1/flows/999999", 404) == "there is no flow of this number, or no more"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"host": "10.0.1.0/24", "since": "5m"}, "db"),
        ({"until": "2001-09-09T00:00:00"}, ""),
        ({"nearest": "dns", "unknown": True}, "d"),
        ({"unexpected_port": True}, "c"),
        ({"sort": "confidence", "ascending": True, "limit": 2}, "de"),
        ({"sensor": "lab", "model": "random", "source": BUS, "port": 53, "final": True, "min_confidence": 0.5}, "b"),
    ],
)
def test_flows_are_found_by_filters(client, asked, expected):
    assert "".join(one["uid"] for one in get(client, "/v1/flows", **asked)["flows"]) == expected


def test_content_is_shown_where_it_is_asked_for(client):
    assert get(client, "/v1/flows", uid="content")["flows"][0]["orig_bytes"] == ""
    shown = get(client, "/v1/flows", uid="content", content=True)["flows"][0]
    assert shown["orig_bytes"] == b"GET".hex()
    assert get(client, f"/v1/flows/{shown['number']}", content=True) == shown
    assert get(client, f"/v1/flows/{shown['number']}")["orig_bytes"] == ""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"host": "nowhere"}, "host: expected an address, or a network"),
        ({"since": "yesterday"}, "expected a time such as"),
        ({"cursor": "x"}, "cursor: expected `next` of a page"),
        ({"port": 70_000}, "port: expected at most 65535"),
        ({"limit": 0}, "limit"),
        ({"min_confidence": 2}, "min_confidence"),
        ({"sort": "label"}, "sort"),
    ],
)
def test_what_cannot_be_asked_is_said(client, asked, said):
    assert said in get(client, "/v1/flows", 422, **asked)


def test_a_parameter_of_one_value_is_refused_when_it_has_several(client):
    several = "expected one value, got several"
    assert get(client, "/v1/flows", 422, label=["TLS", "DNS"], limit=[1, 2]) == f"label, limit: {several}"
    assert get(client, "/v1/alerts", 422, severity=["critical", "critical"]) == f"severity: {several}"


def test_a_misspelt_parameter_is_no_filter(client):
    assert get(client, "/v1/flows", 422, lable="TLS") == "lable: no such parameter: did you mean label?"
    assert "nonsense: no such parameter: there is " in get(client, "/v1/alerts", 422, nonsense=1)
    assert get(client, "/v1/live", 422, x=1) == "x: no such parameter: there is none"
    described = client.get("/openapi.json").json()["paths"]
    assert [path for path, all_of in described.items() if path.startswith("/v1/")
            for one in all_of.values() if "422" not in one["responses"]] == []  # fmt: skip


def test_traces_of_earlier_runs_are_found_by_filters(client):
    page = get(client, "/v1/traces", limit=2)
    schemas.Traces.model_validate(page)
    rest = get(client, "/v1/traces", cursor=page["next"])
    assert [one["subject"] for one in page["traces"] + rest["traces"]] == ["10.0.0.2", "10.0.0.1", "10.0.0.0"]
    assert rest["next"] is None
    assert [one["subject"] for one in get(client, "/v1/traces", suspicious=True)["traces"]] == ["10.0.0.2"]
    assert get(client, "/v1/traces", host="10.0.0.1", label="camera")["traces"][0]["subject"] == "10.0.0.1"
    assert get(client, "/v1/traces", label="plug")["traces"] == []


def test_the_state_of_the_history_is_told(client):
    state = get(client, "/v1/live")["history"]
    assert (state["kept"], state["shed"], state["pending"], state["problem"]) == (0, 0, 0, None)
    assert state["place"].endswith("/data/history.db")
    assert state["recent_sensors"] == {"gate": 5, "lab": 1}


def test_the_live_account_waits_for_no_history(client, monkeypatch):
    monkeypatch.setattr("tapline.service.api.live_route.HISTORY_SECONDS", 0.05)
    ended = threading.Event()
    series = sums.series

    def slow(*asked, **more):
        ended.wait(10)
        return series(*asked, **more)

    monkeypatch.setattr("tapline.service.history.sums.series", slow)
    try:
        assert get(client, "/v1/live")["history"]["recent_sensors"] is None
    finally:
        ended.set()


def test_without_a_history_there_is_a_sentence(checkpoint_dir):
    with api_client(Service(Settings(checkpoint=checkpoint_dir, traces=["none"], history="none"))) as client:
        for path in ("/v1/flows", "/v1/flows/1", "/v1/traces"):
            assert get(client, path, 404) == "no history is kept: start without --history none"
        assert get(client, "/v1/live")["history"] is None


def test_without_traces_there_is_a_reason(checkpoint_dir, tmp_path):
    with api_client(service_of(checkpoint_dir, tmp_path)) as client:
        assert get(client, "/v1/traces", 404).startswith("no live traces: there is no trace model")


def test_a_replay_is_in_the_history_and_in_its_sums(checkpoint_dir, tmp_path):
    service = service_of(checkpoint_dir, tmp_path, replay=CAPTURE, speed=0)
    with api_client(service) as client:
        wait(service.replay.finished.is_set)
        wait(lambda: not service.history.counts.pending)
        counts = service.pipeline.counts
        found, cursor = [], {}
        while not found or cursor:
            page = get(client, "/v1/flows", limit=1000, source=str(CAPTURE), **cursor)
            found += page["flows"]
            cursor = {"cursor": page["next"]} if page["next"] else {}
        assert len(found) == counts.delivered > 50
        assert all(one["verdict"]["final"] and one["payload_lengths"] for one in found)
        tried = client.portal.call(service.history.unclassified)
        assert sum(host.without_payload + host.below_min_packets for host in tried) == counts.skipped > 0
