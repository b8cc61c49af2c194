"""The cascade on and off per request: each gets what it asked for, also where requests share a batch."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tapline.models.checkpoint import Calibration
from tapline.models.student import Student, StudentNetwork
from tapline.service.api import schemas
from tests.conftest import make_checkpoint
from tests.service.api.client import api_client
from tests.service.api.test_ports import CAPTURE, FLOWS, ROUTES, ask, body, served, verdicts

pytestmark = pytest.mark.whole

SURE_OF_SOME = Student(StudentNetwork(8, 8, 16, 16), 0.9, 0.9)


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory):
    """A checkpoint whose student says what it likes."""
    directory = tmp_path_factory.mktemp("repository") / "random" / "1"
    return make_checkpoint(directory, student=SURE_OF_SOME, calibration=Calibration(0.2))


@pytest.fixture(scope="module", params=["on", "off"])
def client(request, student_dir):
    with api_client(served(student_dir, cascade=request.param)) as client:
        client.default = request.param
        yield client


def who(verdicts):
    return {verdict["by_student"] for verdict in verdicts}


@pytest.mark.parametrize("route", ROUTES)
def test_a_request_says_whether_the_student_answers_and_the_service_where_it_does_not(client, route):
    on, off, plain = (verdicts(ask(client, route, query)) for query in ("?cascade=on", "?cascade=off", ""))
    assert (who(on), who(off)) == ({True, False}, {False})
    assert plain == (on if client.default == "on" else off)
    assert [a["confidence"] for a, b in zip(on, off, strict=True) if not a["by_student"]] == pytest.approx(
        [b["confidence"] for a, b in zip(on, off, strict=True) if not a["by_student"]], abs=1e-4
    )
    assert on != off
    (model,) = [each for each in client.get("/v1/models").json()["models"] if each["name"] == "random"]
    assert model["cascade"] is (client.default == "on")


def test_answers_have_the_documented_form(client):
    flows = ask(client, ROUTES[1], "?cascade=on")
    assert [schemas.ClassifiedFlow.model_validate(flow).verdict.by_student for flow in flows] == [
        flow["verdict"]["by_student"] for flow in flows
    ]


@pytest.mark.parametrize("route", [*ROUTES, "/v1/jobs"])
@pytest.mark.parametrize("value", ["maybe", "", "OFF"])
def test_another_value_is_refused(client, route, value):
    answer = client.post(
        route, params={"cascade": value}, content=body(1), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert "cascade" in answer.json()["error"]["message"]


def test_requests_with_and_without_the_student_share_a_batch(student_dir):
    with api_client(served(student_dir)) as client:
        alone = [verdicts(ask(client, ROUTES[0], query)) for query in ("?cascade=on", "?cascade=off")]
    together = served(student_dir, max_batch_size=2 * FLOWS, max_queue_delay_ms=10_000)
    with api_client(together) as client, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, client, ROUTES[0], query) for query in ("?cascade=on", "?cascade=off")]
        found = [verdicts(answer.result(30)) for answer in asked]
        counted = together.metrics.registry.get_sample_value
        assert counted("tapline_batch_flows_count") == 1
        assert counted("tapline_student_flows_total") == sum(verdict["by_student"] for verdict in alone[0]) > 0
    assert [[(v["label"], v["by_student"]) for v in each] for each in found] == [
        [(v["label"], v["by_student"]) for v in each] for each in alone
    ]


def test_a_model_without_a_student_says_nothing_of_one(checkpoint_dir):
    with api_client(served(checkpoint_dir)) as client:
        on, off = (ask(client, ROUTES[0], query) for query in ("?cascade=on", "?cascade=off"))
    assert on == off
    assert not any("by_student" in verdict for verdict in verdicts(on))


def test_a_job_keeps_what_was_asked(student_dir, tmp_path):
    service = served(student_dir, data_dir=tmp_path)
    with api_client(service) as client:
        given = client.post("/v1/jobs", params={"cascade": "off"}, content=CAPTURE.read_bytes())
        assert given.status_code == 202, given.text
        assert given.json()["options"]["cascade"] is False
        assert service.jobs.get(given.json()["id"]).options.cascade is False
        kept = next(tmp_path.rglob("job.json"), None)
        assert kept is not None
        assert msgspec.json.decode(kept.read_bytes())["options"]["cascade"] is False
