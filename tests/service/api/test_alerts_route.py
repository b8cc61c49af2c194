"""`/v1/alerts`: alerts that the live path made come back through filters and pages, and are seen to; `/v1/drift`."""

import json

import pytest

from tapline.service.access.audit import NOBODY
from tapline.service.access.keys import make_key
from tapline.service.api import alert_schemas
from tapline.service.api.stream_route import _wanted
from tapline.service.drift.model_drift import DriftMeasure, ModelDrift
from tapline.service.history.filters import AlertFilter, FlowFilter, TraceFilter
from tests.service.api.client import api_client
from tests.service.api.test_history_route import get, service_of, wait
from tests.service.drift.test_drift import verdict
from tests.service.history.kept import flow
from tests.service.history.test_alerts import ALERTS

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def client(checkpoint_dir, tmp_path_factory):
    """A service that has told of some alerts, and watches a model."""
    service = service_of(checkpoint_dir, tmp_path_factory.mktemp("alerts"))
    with api_client(service) as client:
        for one in ALERTS:
            service.history.alert(one)
        wait(lambda: not service.history.counts.pending)
        client.service = service
        yield client


def ids(page):
    return "".join(one["id"] for one in page["alerts"])


def test_alerts_have_the_documented_form_and_come_page_by_page(client):
    found, cursor = "", {}
    while True:
        page = get(client, "/v1/alerts", limit=2, **cursor)
        alert_schemas.Alerts.model_validate(page)
        found += ids(page)
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert found == "edcba"


def test_every_field_of_an_alert_is_documented():
    assert set(alert_schemas.Alert.model_fields) == {
        *ALERTS[0].__struct_fields__,
        "number",
        "seen_us",
        "acknowledged_us",
        "acknowledged_by",
    }


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"severity": "high"}, "cb"),
        ({"host": "10.0.0.0/8", "since": "5m", "ascending": True}, "ac"),
        ({"kind": "drift"}, "e"),
        ({"rule": "scan", "uid": "C2", "model": "random"}, "b"),
        ({"label": "unknown", "acknowledged": False}, "d"),
        ({"until": "2001-09-09T00:00:00"}, ""),
    ],
)
def test_alerts_are_found_by_filters(client, asked, expected):
    assert ids(get(client, "/v1/alerts", **asked)) == expected


@pytest.mark.parametrize("asked", [{"severity": "worst"}, {"host": "nobody"}, {"kind": "flows"}, {"cursor": "x"}])
def test_what_cannot_be_understood_is_refused(client, asked):
    get(client, "/v1/alerts", 422, **asked)


def test_an_alert_is_seen_to(client):
    assert client.post("/v1/alerts/a/acknowledge").status_code == 204
    wait(lambda: ids(get(client, "/v1/alerts", acknowledged=True)) == "a")
    page = get(client, "/v1/alerts")
    alert_schemas.Alerts.model_validate(page)
    assert [one.get("acknowledged_by", "nobody") for one in page["alerts"]] == ["nobody"] * 4 + [NOBODY]
    answer = client.post("/v1/alerts/nobody's/acknowledge")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_alert")


def test_of_two_keys_the_first_to_see_to_an_alert_is_named(checkpoint_dir, tmp_path):
    """As the account names them: keys by their names, the key of the setting by its own."""
    keys = {name: make_key(name, "classify") for name in ("anna", "bert")}
    audit = tmp_path / "audit"
    options = {"keys": [key.line() for key, _ in keys.values()], "api_key": "a typed one", "audit_log": audit}
    texts = {name: text for name, (_, text) in keys.items()} | {"api_key": "a typed one"}
    service = service_of(checkpoint_dir, tmp_path, **options)
    with api_client(service) as client:
        for one in ALERTS:
            service.history.alert(one)
        wait(lambda: not service.history.counts.pending)

        def see_to(id, name, **headers):
            answer = client.post(f"/v1/alerts/{id}/acknowledge", headers={"x-api-key": texts[name], **headers})
            assert answer.status_code == 204
            wait(lambda: not service.history.counts.pending)

        for id, name in (("a", "bert"), ("a", "anna"), ("b", "anna"), ("b", "bert"), ("c", "api_key")):
            see_to(id, name)
        assert client.post("/v1/alerts/d/acknowledge").status_code == 401
        page = client.get("/v1/alerts", headers={"x-api-key": texts["anna"]}).json()
        assert client.delete("/v1/jobs/none", headers={"x-api-key": texts["api_key"]}).status_code == 404
    alert_schemas.Alerts.model_validate(page)
    seen_to = {one["id"]: one.get("acknowledged_by") for one in page["alerts"]}
    assert seen_to == {"a": "bert", "b": "anna", "c": "api_key", "d": None, "e": None}
    assert json.loads(audit.read_text().splitlines()[-1])["key"] == seen_to["c"]


def test_without_a_history_there_are_none(checkpoint_dir, tmp_path):
    with api_client(service_of(checkpoint_dir, tmp_path, history="none")) as client:
        assert "--history none" in get(client, "/v1/alerts", 404)
        assert client.post("/v1/alerts/a/acknowledge").status_code == 404


def test_drift_is_told(client):
    assert get(client, "/v1/drift") == {"models": [], "problem": None}
    measure = DriftMeasure("labels", "last week", 0.5, 0.4, "mix of labels: DNS 60.0%, was 20.0%")
    client.service.drift.newest["flows"] = ModelDrift("flows", "1", 1, 2, 400, [measure])
    answer = get(client, "/v1/drift")
    alert_schemas.Drift.model_validate(answer)
    assert answer["models"][0]["measures"][0]["reason"] == measure.reason


def test_drift_of_too_few_verdicts_says_how_many_there_are_of_how_many(client):
    """Counted at once, not at the next look some minutes later."""
    monitor = client.service.drift
    monitor.newest.pop("flows", None)
    for _ in range(66):
        monitor.flow("live", flow(), verdict("tls", 0.9))
    [found] = [model for model in get(client, "/v1/drift")["models"] if model["model"] == "flows"]
    assert (found["verdicts"], found["min_verdicts"], found["measures"]) == (66, 300, [])
    assert found["problem"] == "too few verdicts in the last 24 hours: 66 of 300"


@pytest.mark.parametrize(
    ("asked", "kind", "expected"),
    [
        ({}, None, "fta"),
        ({}, "alert", "a"),
        ({}, "flow", "f"),
        ({"port": 53}, None, "f"),
        ({"uid": "C1"}, None, "fa"),
        ({"suspicious": True}, None, "t"),
        ({"severity": "high"}, None, "a"),
        ({"nearest": "ssh"}, None, "ft"),
        ({"severity": "high"}, "flow", ""),
    ],
)
def test_a_filter_of_the_stream_leaves_out_what_does_not_have_it(asked, kind, expected):
    kinds = (FlowFilter, TraceFilter, AlertFilter)
    given = [of(**{name: value for name, value in asked.items() if name in of.__struct_fields__}) for of in kinds]
    found = _wanted(*given, kind)
    assert "".join(letter for letter, wanted in zip("fta", found, strict=True) if wanted is not None) == expected
