"""`/v1/jobs` as a client sees it: real captures, real processes, bad input, limits, and what is left on disk."""

import gzip
import io
import json
import threading

import pytest

from tapline.service.api import job_schemas, schemas
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.capture import read_capture
from tests.conftest import make_checkpoint
from tests.paths import DATA
from tests.service.api.client import api_client
from tests.service.api.served import udp_capture

pytestmark = pytest.mark.whole

CAPTURE = (DATA / "captures" / "android.pcap").read_bytes()
JSON = {"content-type": "application/json"}
ENDS = ("done", "failed", "cancelled")


class Client:
    """A client of a service in this process, which can wait for what happens there."""

    def __init__(self, client, service):
        self.http = client
        self.service = service

    def until(self, condition):
        """Wait until what a condition gives is true, as jobs change."""
        since = 0
        while not (found := condition()):
            since = self.http.portal.call(self.service.jobs.changed, since)
        return found

    def get(self, path, **options):
        return self.http.get(f"/v1/jobs{path}", **options)

    def submit(self, content=CAPTURE, query="", **headers):
        answer = self.http.post(f"/v1/jobs{query}", content=content, headers=headers)
        assert answer.status_code == 202, answer.text
        job = job_schemas.Job.model_validate_json(answer.text)
        assert answer.headers["location"] == f"/v1/jobs/{job.id}"
        return job.id

    def ended(self, id):
        self.until(lambda: self.service.jobs.get(id).has_ended)
        return job_schemas.Job.model_validate_json(self.get(f"/{id}").text)

    def folders(self):
        directory = self.service.settings.data_dir / "jobs"
        return sorted(path.name for path in directory.iterdir() if path.is_dir())


@pytest.fixture
def client(checkpoint_dir, tmp_path, request):
    given = getattr(request, "param", {})
    captures = tmp_path / "captures"
    captures.mkdir()
    settings = Settings(
        **{"checkpoint": checkpoint_dir, "traces": ["none"], "data_dir": tmp_path / "data", "captures_dir": captures}
        | given
    )
    service = Service(settings)
    with api_client(service, raise_server_exceptions=False) as http:
        yield Client(http, service)


def settings(**given):
    return pytest.mark.parametrize("client", [given], indirect=True)


@pytest.fixture
def held(client):
    """Holds every batch until it is set; `entered` says that one is held."""
    gate, engine = threading.Event(), client.service.classifier.network.engine
    gate.entered = threading.Event()
    run = engine.run

    def wait(batch):
        gate.entered.set()
        gate.wait(60)
        return run(batch)

    engine.run = wait
    yield gate
    gate.set()


def error(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    return answer.json()["error"]["message"]


def without_input(flows):
    return [{name: value for name, value in flow.items() if name != "input"} for flow in flows]


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nfile\r\n--x\r\nContent-Disposition: form-data; '
    b'name="file"; filename="../a/phone.pcap"\r\nContent-Type: a/b\r\n\r\n' + CAPTURE + b"\r\n--x--\r\n"
)


def test_a_result_is_what_an_upload_would_have_been_answered(client):
    answered = client.http.post("/v1/classify/pcap?content=true", content=CAPTURE).json()
    id = client.submit(query="?name=phone")
    job = client.ended(id)
    assert (job.state, job.name, job.share, job.read_bytes) == ("done", "phone", 1.0, len(CAPTURE))
    whole = client.get(f"/{id}/result?content=true").json()
    schemas.Classified.model_validate(whole)
    assert without_input(whole["flows"]) == without_input(answered["flows"])
    assert whole["summary"]["inputs"][0] == answered["summary"]["inputs"][0] | {"name": "phone"}
    without = client.get(f"/{id}/result").json()["flows"]
    assert {flow["orig_bytes"] + flow["resp_bytes"] for flow in without} == {""}
    assert [flow["server_name"] for flow in without] == [flow["server_name"] for flow in whole["flows"]]
    *lines, last = client.get(f"/{id}/result", headers={"accept": "application/x-ndjson"}).text.splitlines()
    assert [json.loads(line)["uid"] for line in lines] == [flow["uid"] for flow in whole["flows"]]
    assert json.loads(last)["summary"] == whole["summary"]
    assert len(client.get(f"/{id}/result?format=csv").text.splitlines()) == 1 + len(lines)


@pytest.mark.parametrize(
    ("content", "kind", "name"),
    [
        (gzip.compress(CAPTURE), "application/octet-stream", "capture"),
        (FORM, "multipart/form-data; boundary=x", "phone.pcap"),
    ],
)
def test_bodies_and_forms(client, content, kind, name):
    job = client.ended(client.submit(content, **{"content-type": kind}))
    assert (job.state, job.name, job.summary.inputs[0].packets) == ("done", name, 500)


def test_a_form_in_pieces_of_any_size_is_the_same(client):
    def pieces():
        for at in range(0, len(FORM), 997):
            yield FORM[at : at + 997]

    assert client.ended(client.submit(pieces(), **{"content-type": "multipart/form-data; boundary=x"})).state == "done"
    assert (client.service.settings.data_dir / "jobs" / client.folders()[0] / "capture").read_bytes() == CAPTURE


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "application/octet-stream", 422, "bad_capture"),
        (FORM[:-400], "multipart/form-data; boundary=x", 400, "bad_multipart"),
        (FORM, "multipart/form-data", 400, "bad_multipart"),
        (FORM, "multipart/form-data; boundary=y", 400, "bad_multipart"),
        (FORM.replace(b'"file"', b'"other"'), "multipart/form-data; boundary=x", 400, "no_file"),
        (b"--x\r\nA: " + b"b" * 20_000 + b"\r\n\r\n--x--\r\n", "multipart/form-data; boundary=x", 400, "bad_multipart"),
        (b'--x\r\nA: b\r\n\r\n\r\n' * 40 + b"--x--\r\n", "multipart/form-data; boundary=x", 400, "bad_multipart"),
        (b"{", "application/json", 422, "invalid"),
        (b'{"path": 3}', "application/json", 422, "invalid"),
        (b'{"path": "a", "more": 1}', "application/json", 422, "invalid"),
        (b'{"path": "../data"}', "application/json; charset=utf-8", 422, "bad_path"),
        (b"[" * 60_000, "application/json", 422, "invalid"),
        (b'"' + b"x" * 70_000, "application/json", 413, "too_large"),
    ],
)  # fmt: skip
def test_what_is_no_capture_leaves_nothing(client, content, kind, status, code):
    error(client.http.post("/v1/jobs", content=content, headers={"content-type": kind}), status, code)
    assert (client.get("").json(), client.folders()) == ({"jobs": []}, [])


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?model=none", 404, "no_model"),
        ("?traces=none-such", 404, "no_model"),
        ("?traces=none,x", 422, "bad_traces"),
        ("?ports=maybe", 422, "invalid"),
        ("?cascade=maybe", 422, "invalid"),
    ],
)
def test_options_that_are_none_are_refused_before_the_body_is_read(client, query, status, code):
    error(client.http.post(f"/v1/jobs{query}", content=CAPTURE), status, code)
    assert client.folders() == []


def test_what_turns_out_to_be_no_capture_fails_and_keeps_no_bytes(client):
    job = client.ended(client.submit(b"this is no capture"))
    assert (job.state, job.summary) == ("failed", None)
    assert "expected a pcap or pcapng file" in job.error
    assert "failed: expected a pcap" in error(client.get(f"/{job.id}/result"), 409, "not_done")
    assert [path.name for path in (client.service.settings.data_dir / "jobs" / job.id).iterdir()] == ["job.json"]


def test_a_capture_that_is_cut_is_done_and_says_so(client):
    job = client.ended(client.submit(CAPTURE[:-100]))
    assert job.state == "done"
    assert "ends in the middle" in job.warning


def test_a_path_below_the_directory(client):
    captures = client.service.settings.captures_dir
    (captures / "day").mkdir()
    (captures / "day" / "a.pcap").write_bytes(CAPTURE)
    id = client.submit(b'{"path": "day/a.pcap"}', **JSON)
    job = client.ended(id)
    assert (job.state, job.name, job.path, job.summary.flows) == ("done", "a.pcap", "day/a.pcap", 69)
    assert client.get(f"/{id}/flows/1/packets").status_code == 200
    (captures / "day" / "a.pcap").write_bytes(CAPTURE + b"more")
    error(client.get(f"/{id}/flows/1/packets"), 410, "capture_gone")
    assert client.http.delete(f"/v1/jobs/{id}").status_code == 200
    assert (captures / "day" / "a.pcap").exists()


def test_pages_filters_and_sorts(client):
    id = client.submit()
    client.ended(id)
    whole = client.get(f"/{id}/result").json()["flows"]
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/{id}/flows?limit=7{cursor and '&cursor=' + cursor}")
        schemas.PastFlows.model_validate_json(page.text)
        found += page.json()["flows"]
        cursor = page.json()["next"]
    assert [flow["uid"] for flow in found] == [flow["uid"] for flow in whole]
    assert [flow["number"] for flow in found] == list(range(1, len(whole) + 1))
    dns = client.get(f"/{id}/flows?port=53&host=192.168.2.0/24").json()["flows"]
    assert [flow["uid"] for flow in dns] == [flow["uid"] for flow in whole if flow["resp_p"] == 53]
    bytes_of = [
        flow["orig_ip_bytes"] + flow["resp_ip_bytes"]
        for flow in client.get(f"/{id}/flows?sort=bytes&ascending=false").json()["flows"]
    ]
    assert bytes_of == sorted(bytes_of, reverse=True)
    one = client.get(f"/{id}/flows/3?content=true").json()
    schemas.PastFlow.model_validate(one)
    assert one["uid"] == whole[2]["uid"]
    for query in ("host=nobody", "cursor=x", "limit=0", "limit=1001", "sort=name", "min_confidence=2"):
        error(client.get(f"/{id}/flows?{query}"), 422, "invalid")
    error(client.get(f"/{id}/flows/70"), 404, "no_job")
    error(client.get(f"/{'0' * 24}/flows"), 404, "no_job")


def test_traces_are_kept(mac_traces_dir, checkpoint_dir, tmp_path):
    service = Service(Settings(checkpoint=checkpoint_dir, traces=[str(mac_traces_dir)], data_dir=tmp_path))
    with api_client(service) as http:
        client = Client(http, service)
        answered = http.post("/v1/classify/pcap", files={"file": ("capture", CAPTURE)}).json()["traces"]
        id = client.submit()
        client.ended(id)
        assert len(answered) > 2
        assert client.get(f"/{id}/result").json()["traces"] == answered
        page = client.get(f"/{id}/traces?limit=2")
        job_schemas.JobTraces.model_validate_json(page.text)
        assert [{name: trace[name] for name in answered[0]} for trace in page.json()["traces"]] == answered[:2]
        assert len(client.get(f"/{id}/result?format=csv&show=traces").text.splitlines()) == 1 + len(answered)
        none = client.submit(query="?traces=none")
        client.ended(none)
        assert client.get(f"/{none}/traces").json() == {"traces": [], "next": None}


def test_the_packets_of_a_flow(client):
    id = client.submit()
    client.ended(id)
    flow = client.get(f"/{id}/flows/2").json()
    answer = client.get(f"/{id}/flows/2/packets")
    assert answer.headers["content-type"] == "application/vnd.tcpdump.pcap"
    assert answer.headers["content-disposition"] == 'attachment; filename="flow-2.pcap"'
    (again,) = read_capture(io.BytesIO(answer.content))
    assert [getattr(again, name) for name in ("start_us", "orig_h", "resp_p", "payload_lengths")] == [
        flow[name] for name in ("start_us", "orig_h", "resp_p", "payload_lengths")
    ]
    (client.service.settings.data_dir / "jobs" / id / "capture").write_bytes(b"gone")
    error(client.get(f"/{id}/flows/2/packets"), 410, "capture_gone")


@settings(max_jobs=1, max_queued_jobs=2)
def test_jobs_wait_in_turn_within_their_bound_and_can_be_cancelled(client, held):
    first = client.submit()
    client.until(lambda: client.service.jobs.get(first).state == "reading")
    second, third = client.submit(), client.submit()
    assert error(client.http.post("/v1/jobs", content=CAPTURE), 503, "busy").startswith("2 jobs are waiting")
    error(client.get(f"/{second}/result"), 409, "not_done")
    assert client.http.delete(f"/v1/jobs/{second}").json()["state"] == "cancelled"
    assert client.http.delete(f"/v1/jobs/{first}").json()["state"] == "cancelled"
    held.set()
    assert client.ended(third).state == "done"
    assert [job["state"] for job in client.get("").json()["jobs"]] == ["done", "cancelled", "cancelled"]
    assert [job["id"] for job in client.get("?state=cancelled&limit=1").json()["jobs"]] == [second]
    assert client.http.delete(f"/v1/jobs/{second}").status_code == 200
    error(client.get(f"/{second}"), 404, "no_job")
    assert client.folders() == sorted([first, third])


@settings(max_jobs=1)
def test_live_flows_and_small_requests_do_not_wait_for_jobs(client, held):
    client.submit(udp_capture(3000))
    assert held.entered.wait(60)
    held.set()
    flows = [{"uid": "C1", "start_us": 1, "orig_h": "10.0.0.1", "orig_p": 1, "resp_h": "10.0.0.2", "resp_p": 53,
              "proto": "udp", "up": 1, "payload_lengths": [9], "orig_bytes": "00"}]  # fmt: skip
    answer = client.http.post("/v1/classify/flows", json={"flows": flows})
    assert answer.status_code == 200
    assert [job.state for job in client.service.jobs.list()] == ["reading"]


@settings(max_job_mb=1)
def test_a_capture_over_the_limit_leaves_nothing(client):
    def pieces():
        for _ in range(40):
            yield bytes(50_000)

    error(client.http.post("/v1/jobs", content=bytes(2 << 20)), 413, "too_large")
    error(client.http.post("/v1/jobs", content=pieces()), 413, "too_large")
    assert client.folders() == []
    bomb = client.ended(client.submit(gzip.compress(udp_capture(6000))))
    assert (bomb.state, "more than the allowed" in bomb.error) == ("failed", True)


@settings(jobs_mb=1)
def test_the_oldest_results_make_room_for_new_ones(client):
    capture, ids = udp_capture(300), []
    for _ in range(8):
        ids.append(client.submit(capture))
        client.ended(ids[-1])
    client.until(lambda: len(client.service.jobs.list()) < len(ids))
    kept = [job.id for job in reversed(client.service.jobs.list())]
    assert kept == ids[-len(kept) :]
    assert len(kept) > 1
    assert client.service.metrics.jobs_removed.labels("room")._value.get() == len(ids) - len(kept)
    error(client.http.post("/v1/jobs", content=bytes(1_200_000)), 507, "no_room")


@settings(job_days=1e-9)
def test_old_jobs_are_deleted(client):
    id = client.submit()
    client.until(lambda: not client.service.jobs.list())
    error(client.get(f"/{id}"), 404, "no_job")
    assert client.service.metrics.jobs_removed.labels("age")._value.get() == 1


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"host": "evil"}]
)
def test_a_page_from_elsewhere_can_submit_nothing(client, headers):
    assert client.http.post("/v1/jobs", content=CAPTURE, headers=headers).status_code in (403, 421)
    assert client.folders() == []


@settings(api_key="k3y")
def test_the_key_is_asked_for(client):
    for method, path in (
        ("POST", ""),
        ("GET", ""),
        ("GET", "/x/result"),
        ("DELETE", "/x"),
        ("GET", "/x/flows/1/packets"),
    ):
        assert client.http.request(method, f"/v1/jobs{path}").status_code == 401


def test_a_model_that_is_unloaded_meanwhile_is_said(tmp_path):
    for name in ("random", "other"):
        make_checkpoint(tmp_path / "models" / name / "1", name=name)
    service = Service(
        Settings(
            repository=tmp_path / "models", model="random", load_models=["other"], traces=["none"], data_dir=tmp_path
        )
    )
    with api_client(service) as http:
        client = Client(http, service)
        gate, engine = threading.Event(), service.models.batcher("other").classifier.network.engine
        run = engine.run
        entered = threading.Event()
        engine.run = lambda batch: (entered.set(), gate.wait(60), run(batch))[-1]
        id = client.submit(udp_capture(3000), query="?model=other")
        assert entered.wait(60)
        unloading = threading.Thread(target=http.delete, args=["/v1/models/other"])
        unloading.start()
        gate.set()
        job = client.ended(id)
        unloading.join()
        assert (job.state, job.error) in (("failed", "its model was unloaded meanwhile"), ("done", None))
