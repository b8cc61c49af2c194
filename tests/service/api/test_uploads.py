"""Uploads in a service of its own: nothing is imported from where it runs, no room on disk, and no loss in silence."""

import gzip
import io
import json
import sys

import msgspec
import pytest

from tapline.service.sources import capture_worker
from tapline.service.sources.capture_worker import WorkerOptions
from tests.service.api.served import Server, udp_capture

pytestmark = pytest.mark.whole

FLOWS = 6000
CAPTURE = udp_capture(FLOWS, payload_bytes=1000)
"""Over 6 MB, and most flows end long before the capture does."""

NDJSON = "application/x-ndjson"
DECOY = "from pathlib import Path; Path({marker!r}).write_text('imported'); raise ImportError"


def summary_of(body, accept):
    return json.loads(body.splitlines()[-1] if accept == NDJSON else body)["summary"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoint_dir):
    with Server(tmp_path_factory.mktemp("served"), checkpoint_dir, "--max-capture-mb", 4) as server:
        yield server


@pytest.mark.parametrize("accept", ["application/json", NDJSON])
def test_a_capture_that_is_too_large_half_way_is_not_told_as_whole(server, accept):
    status, body = server.upload(gzip.compress(CAPTURE), Accept=accept)
    summary = summary_of(body, accept)
    assert status == 200
    assert 256 < summary["flows"] < FLOWS
    (entry,) = summary["inputs"]
    assert "more than the allowed" in entry["warning"]
    assert entry["packets"] >= entry["flows"] == summary["flows"]
    if accept != NDJSON:
        assert len(json.loads(body)["flows"]) == summary["classified"]


def test_a_reader_that_runs_out_of_memory_says_how_far_it_came(monkeypatch):
    sent = []

    def send(message):
        if len(sent) == 2:
            sent.append(None)
            raise MemoryError
        sent.append(message)

    options = WorkerOptions(1 << 30, 1 << 30)
    monkeypatch.setattr(capture_worker, "_send", send)
    monkeypatch.setattr(capture_worker.resource, "setrlimit", lambda *limits: None)
    monkeypatch.setattr(sys, "argv", ["worker", msgspec.json.encode(options).decode()])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CAPTURE)))
    capture_worker.main()
    end = sent[-1]
    assert "more memory than is allowed" in end.error
    assert end.packets >= sum(len(message.flows) for message in sent[:2]) == 2 * capture_worker.FLOWS_PER_MESSAGE


def test_nothing_is_imported_from_the_current_directory(tmp_path, checkpoint_dir):
    decoys, marker = tmp_path / "decoys", tmp_path / "marker"
    for package in ("tapline", "models"):
        (decoys / package).mkdir(parents=True)
        (decoys / package / "__init__.py").write_text(DECOY.format(marker=str(marker)))
    for module in ("msgspec", "numpy", "struct", "json", "resource", "site", "sitecustomize", "zstandard"):
        (decoys / f"{module}.py").write_text(DECOY.format(marker=str(marker)))
    with Server(tmp_path, checkpoint_dir, "--traces", "none", cwd=decoys) as server:
        status, body = server.upload(CAPTURE)
        assert status == 200
        assert summary_of(body, "")["inputs"][0] == {
            "name": "capture", "flows": FLOWS, "packets": FLOWS, "skipped": {}, "warning": None, "error": None,
        }  # fmt: skip
    assert not marker.exists()


MULTIPART = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.pcap"\r\n\r\n' + CAPTURE + b"\r\n--x--\r\n",
    "multipart/form-data; boundary=x",
)


@pytest.mark.parametrize(("body", "kind"), [(CAPTURE, "application/octet-stream"), MULTIPART])
def test_no_room_on_disk_is_507(tmp_path, checkpoint_dir, body, kind):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    with Server(tmp_path, checkpoint_dir, "--traces", "none", before=limit) as server:
        status, answer = server.ask("POST", "/v1/classify/pcap", body, {"Content-Type": kind})
        assert (status, json.loads(answer)["error"]["code"]) == (507, "no_room")
        server.wait_free()
        assert server.upload(udp_capture(5))[0] == 200
        assert "Traceback" not in server.log


def test_traces_without_room_on_disk_are_said_to_be_missing(tmp_path, checkpoint_dir):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    code = f"import resource; from tapline.service.results import spool; spool._MEMORY_BYTES = 0; {limit}"
    capture = udp_capture(1000, gap_us=700_000_000)  # every flow in a window of its own
    with Server(tmp_path, checkpoint_dir, before=code) as server:
        status, body = server.upload(capture)
        assert status == 200
        answer = json.loads(body)
        assert 0 < len(answer["traces"]) < answer["summary"]["traces"][0]["traces"]
        assert "traces are missing" in answer["summary"]["inputs"][0]["warning"]
