"""The REST API as a client sees it: real captures, real worker processes, bad input, limits, one error shape."""

import gzip
import json

import pytest
import zstandard

from tapline.models.flow import FlowLine
from tapline.service.api import schemas
from tapline.service.inference.waiting import VerdictError
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.conftest import make_checkpoint
from tests.paths import DATA
from tests.service.api.client import api_client
from tests.service.command.cli_runner import tapline

pytestmark = pytest.mark.whole

CAPTURE = DATA / "captures" / "android.pcap"
NDJSON = {"accept": "application/x-ndjson"}


@pytest.fixture(scope="module")
def client(checkpoint_dir):
    settings = Settings(
        checkpoint=checkpoint_dir, traces=["none"], max_upload_mb=1, max_body_mb=1, max_capture_mb=2,
        max_uploads=2,
    )  # fmt: skip
    with api_client(Service(settings), raise_server_exceptions=False) as client:
        yield client


def upload(client, content, **headers):
    return client.post("/v1/classify/pcap", content=content, headers=headers)


def message(response, status):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    return body["error"]["message"]


def test_multipart_and_raw_body_give_what_the_command_line_gives(client, checkpoint_dir):
    route = "/v1/classify/pcap?content=true"
    form = client.post(route, files={"file": ("android.pcap", CAPTURE.read_bytes())}).json()
    raw = client.post(route, content=CAPTURE.read_bytes()).json()
    result = tapline("classify", CAPTURE, "--checkpoint", checkpoint_dir, "--format", "json", "--traces", "none")
    commanded = json.loads(result.stdout)
    assert len(form["flows"]) > 50
    for flows in (form["flows"], raw["flows"], commanded["flows"]):
        for flow in flows:
            flow.pop("input")
            flow["verdict"]["confidence"] = pytest.approx(flow["verdict"]["confidence"], abs=1e-4)
            for other in flow["verdict"]["alternatives"]:
                other["confidence"] = pytest.approx(other["confidence"], abs=1e-4)
    assert form["flows"] == raw["flows"] == commanded["flows"]
    schemas.Classified.model_validate({"flows": [], "traces": [], "summary": form["summary"]})
    assert (form["traces"], form["summary"]["traces"]) == ([], [])
    assert form["summary"]["classified"] == len(form["flows"])
    assert form["summary"]["inputs"][0]["name"] == "android.pcap"


@pytest.mark.parametrize("headers", [{}, NDJSON], ids=["json", "ndjson"])
def test_answers_hold_content_only_where_it_is_asked_for(client, headers):
    def flows(**query):
        answer = client.post("/v1/classify/pcap", params=query, content=CAPTURE.read_bytes(), headers=headers)
        return answer.json()["flows"] if not headers else [json.loads(line) for line in answer.text.splitlines()[:-1]]

    whole, bare = flows(content="true"), flows()
    assert any(flow["orig_bytes"] for flow in whole)
    assert {(flow["orig_bytes"], flow["resp_bytes"], len(flow["heads"])) for flow in bare} == {("", "", 0)}
    assert [flow["server_name"] for flow in bare] == [flow["server_name"] for flow in whole]
    assert any(flow["server_name"] for flow in bare)
    assert [flow["verdict"]["label"] for flow in bare] == [flow["verdict"]["label"] for flow in whole]


def test_answers_to_flows_hold_content_only_where_it_is_asked_for(client):
    lines = [json.loads(line) for line in tapline("features", CAPTURE).stdout.splitlines()]
    assert any(line["heads"] for line in lines)
    bare, whole = (
        client.post("/v1/classify/flows", params=query, json={"flows": lines}).json()
        for query in ({}, {"content": "true"})
    )
    assert {(flow["orig_bytes"], flow["resp_bytes"], len(flow["heads"])) for flow in bare["flows"]} == {("", "", 0)}
    assert [flow["heads"] for flow in whole["flows"]] == [line["heads"] for line in lines]
    assert bare["summary"] == whole["summary"]


def test_a_summary_tells_who_tried_ports(client):
    summary = upload(client, CAPTURE.read_bytes()).json()["summary"]
    assert summary["without_payload"] == 3
    assert summary["port_tries"] == {
        "hosts": [{"orig_h": "192.168.2.16", "flows": 3, "responders": 3, "ports": 3, "more_responders": False}],
        "flows_of_others": 0,
    }


def test_answers_have_the_documented_form(client):
    flows = upload(client, CAPTURE.read_bytes()).json()["flows"]
    assert [schemas.ClassifiedFlow.model_validate(flow).uid for flow in flows] == [flow["uid"] for flow in flows]


def test_ndjson_is_one_flow_a_line_and_a_summary_at_the_end(client):
    lines = [json.loads(line) for line in upload(client, CAPTURE.read_bytes(), **NDJSON).text.splitlines()]
    *flows, last = lines
    assert all("verdict" in flow for flow in flows)
    assert last["summary"]["classified"] == len(flows)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_captures(client, compress):
    plain = upload(client, CAPTURE.read_bytes()).json()
    packed = upload(client, compress(CAPTURE.read_bytes())).json()
    assert [flow["uid"] for flow in packed["flows"]] == [flow["uid"] for flow in plain["flows"]]


def test_a_capture_cut_in_a_packet_says_where(client):
    body = upload(client, CAPTURE.read_bytes()[:20_000]).json()
    assert body["summary"]["classified"] > 5
    assert "ends in the middle of packet" in body["summary"]["inputs"][0]["warning"]


@pytest.mark.parametrize("content", [b"", b"hello, this is no capture", b"\x1f\x8b\x08\x00broken", bytes(200)])
def test_not_a_capture(client, content):
    text = message(upload(client, content), 422)
    assert text in ("the capture is empty",) or text.startswith("expected a pcap or pcapng file")


def test_a_gzip_bomb_stops_at_the_limit(client):
    bomb = gzip.compress(CAPTURE.read_bytes()[:24] + bytes(8 << 20))
    assert len(bomb) < 100_000
    response = upload(client, bomb)
    text = response.text
    assert response.status_code in (200, 422)
    assert "bytes" in text


def test_an_upload_over_the_limit_is_refused_while_it_comes(client):
    assert message(upload(client, bytes(1 << 21)), 413) == "the body is larger than the limit of 1 MiB"

    def chunks():
        for _ in range(40):
            yield bytes(1 << 16)

    assert "larger than the limit" in message(upload(client, chunks()), 413)
    form = client.post("/v1/classify/pcap", files={"file": ("big.pcap", bytes(1 << 21))})
    assert "larger than the limit" in message(form, 413)


def test_multipart_without_a_file(client):
    assert "`file`" in message(client.post("/v1/classify/pcap", files={"other": b"x"}), 400)
    assert message(upload(client, b"x", **{"content-type": "multipart/form-data"}), 400)


def features():
    result = tapline("features", CAPTURE, "--reader", "builtin", "--tokens")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_flows_as_features_writes_them(client):
    flows = features()
    body = client.post("/v1/classify/flows", json={"flows": flows}).json()
    by_capture = upload(client, CAPTURE.read_bytes()).json()
    assert [flow["uid"] for flow in body["flows"]] == [flow["uid"] for flow in by_capture["flows"]]
    for one, other in zip(body["flows"], by_capture["flows"], strict=True):
        assert one["verdict"]["label"] == other["verdict"]["label"]
        assert one["verdict"]["confidence"] == pytest.approx(other["verdict"]["confidence"], abs=1e-4)


def test_names_of_servers_come_with_verdicts_and_change_none(client):
    flows = features()
    names = [flow["server_name"] for flow in flows]
    assert {"captive.apple.com", "play.googleapis.com", ""} < set(names)
    for flow in flows:
        del flow["server_name"]
    found = client.post("/v1/classify/flows", json={"flows": flows}).json()["flows"]
    assert [flow["server_name"] for flow in found] == [
        name for name, flow in zip(names, flows, strict=True) if flow["up"] + flow["down"]
    ]
    given = [{**flow, "server_name": "given.example"} for flow in flows]
    named = client.post("/v1/classify/flows", json={"flows": given}).json()["flows"]
    assert {flow["server_name"] for flow in named} == {"given.example"}
    assert [flow["verdict"] for flow in named] == [flow["verdict"] for flow in found]
    assert [flow["server_name"] for flow in upload(client, CAPTURE.read_bytes()).json()["flows"]] == [
        flow["server_name"] for flow in found
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"server_name": "s" * 256}, "flows.0: Expected `str` of length <= 255 - at `$.server_name`"),
        ({"colour": 1}, "flows.0: Object contains unknown field `colour`"),
        ({"orig_p": "80"}, "flows.0: Expected `int`, got `str` - at `$.orig_p`"),
        ({"payload_lengths": [1, 0]}, "flows.0: expected lengths of packets with payload, got 0"),
        ({"orig_h": "nowhere"}, "flows.0: expected an IPv4 or IPv6 address - at `$.orig_h`"),
        ({"orig_bytes": "xyz"}, "flows.0: Expected `str` matching regex"),
    ],
)
def test_bad_flows_are_named(client, change, text):
    (flow, *_) = features()
    assert text in message(client.post("/v1/classify/flows", json={"flows": [{**flow, **change}]}), 422)


def test_broken_json_and_too_much_of_it(client):
    headers = {"content-type": "application/json"}
    assert message(client.post("/v1/classify/flows", content=b"{", headers=headers), 422)
    assert "larger than" in message(client.post("/v1/classify/flows", content=bytes(1 << 21), headers=headers), 413)


def test_too_many_captures_at_a_time(client):
    service = client.app.state.service
    with service.upload_slot(), service.upload_slot():
        response = upload(client, CAPTURE.read_bytes())
        assert "captures are being worked on" in message(response, 503)
        assert response.headers["retry-after"] == "2"
        assert message(client.get("/readyz"), 503) == "2 captures are being worked on"
        assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def test_a_full_queue_is_429_with_retry_after(client, monkeypatch):
    monkeypatch.setattr(client.app.state.service.batcher._queue, "max_queue_size", 3)
    response = client.post("/v1/classify/flows", json={"flows": features()[:8]})
    assert "the limit is 3" in message(response, 429)
    assert response.headers["retry-after"] == "2"


def test_models_metrics_docs_and_unknown_routes(client):
    (model,) = [model for model in client.get("/v1/models").json()["models"] if model["default"]]
    assert (model["name"], model["labels"]) == ("random", ["dns", "http", "tls"])
    upload(client, CAPTURE.read_bytes())
    text = client.get("/metrics").text
    assert 'tapline_requests_total{route="/v1/classify/pcap",status="200"}' in text
    assert 'tapline_model_info{kind="mm4flow",name="random",version="1"} 1.0' in text
    assert "/static-offline-docs/" in client.get("/docs").text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/classify/pcap", "/v1/classify/flows", "/v1/models", "/healthz", "/readyz", "/metrics"} <= set(paths)
    message(client.get("/nowhere"), 404)
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"
    message(client.get("/v1/classify/pcap"), 405)


def test_the_flow_of_the_api_is_the_flow_of_the_command_line():
    assert set(schemas.FlowIn.model_fields) == set(FlowLine.__struct_fields__)


def test_an_api_key_guards_all_but_the_probes(checkpoint_dir):
    settings = Settings(checkpoint=checkpoint_dir, api_key="s3cret", host="0.0.0.0")
    with api_client(Service(settings)) as client:
        assert "API key" in message(client.get("/v1/models"), 401)
        assert message(client.get("/metrics", headers={"x-api-key": "wrong"}), 401)
        assert client.get("/v1/models", headers={"x-api-key": "s3cret"}).status_code == 200
        assert client.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_killed_reader_costs_one_answer(client, monkeypatch):
    monkeypatch.setattr("tapline.service.sources.capture_stream.MAX_MESSAGE_BYTES", 10)
    body = upload(client, CAPTURE.read_bytes()).json()
    assert "process that reads this capture died" in body["summary"]["inputs"][0]["warning"]
    monkeypatch.undo()
    assert upload(client, CAPTURE.read_bytes()).json()["summary"]["inputs"][0]["warning"] is None


@pytest.mark.parametrize("headers", [{}, NDJSON])
def test_flows_without_verdicts_because_the_model_goes_are_told(client, monkeypatch, headers):
    async def stopping(flows, **options):
        raise VerdictError("the service is stopping")

    monkeypatch.setattr(client.app.state.service.batcher, "classify", stopping)
    text = upload(client, CAPTURE.read_bytes(), **headers).text
    (entry,) = json.loads(text.splitlines()[-1] if headers else text)["summary"]["inputs"]
    assert entry["flows"] > 5
    assert "not all flows were classified: the service is stopping" in entry["warning"]


@pytest.fixture
def repository(tmp_path):
    for name, version in (("random", "1"), ("random", "2"), ("other", "1")):
        make_checkpoint(tmp_path / name / version, name=name, version=version)
    return tmp_path


def test_models_are_loaded_named_swapped_and_unloaded(repository):
    service = Service(Settings(repository=repository, model="random", load_models=["other"]))
    with api_client(service) as client:

        def answer(model):
            body = {"flows": features()[:2]}
            return client.post("/v1/classify/flows", json=body, params={"model": model} if model else {})

        def version(response):
            return response.json()["flows"][0]["verdict"]["model"], response.json()["flows"][0]["verdict"]["version"]

        assert version(answer(None)) == ("random", "2")
        assert version(answer("other")) == ("other", "1")
        swapped = client.post("/v1/models/random/load", params={"version": "1"}).json()
        assert (swapped["version"], swapped["versions"], swapped["default"]) == ("1", ["1", "2"], True)
        assert version(answer(None)) == ("random", "1")
        assert client.post("/v1/models/other/unload").status_code == 200
        assert message(answer("other"), 404) == "no flow model other is loaded, only random"
        assert "default model" in message(client.post("/v1/models/random/unload"), 409)
        assert "no model nothing here" in message(client.post("/v1/models/nothing/load"), 404)
        traces = next(iter(service.trace_models.scorers))
        assert client.post(f"/v1/models/{traces}/load").json()["closed_windows"] == 0
        assert {model["name"]: model["kind"] for model in client.get("/v1/models").json()["models"]}[
            traces
        ] == "tracegram"
        (repository / "random" / "2" / "model.onnx").write_bytes(b"damaged")
        assert "the manifest says" in message(client.post("/v1/models/random/load"), 422)
        assert version(answer(None)) == ("random", "1")
        capture = client.post("/v1/classify/pcap", content=CAPTURE.read_bytes(), params={"model": "other"})
        assert message(capture, 404)


def test_a_request_that_waits_too_long_is_answered_and_not_computed(checkpoint_dir, engine, monkeypatch):
    service = Service(Settings(checkpoint=checkpoint_dir, request_timeout_seconds=0.2))
    with api_client(service) as client:
        monkeypatch.setattr(service.classifier.network, "engine", engine)
        engine.gate.clear()
        body = {"flows": features()[:2]}
        first, second = (client.post("/v1/classify/flows", json=body) for _ in range(2))
        engine.gate.set()
        assert "no verdicts within 0.2 seconds" in message(first, 503)
        assert (second.status_code, second.headers["retry-after"]) == (503, "2")
    assert engine.batches == [2]
    assert service.metrics.registry.get_sample_value("tapline_failures_total", {"reason": "CANCELED"}) == 2
