"""Jobs of a service in a process of its own: killed at any moment, on a full disk, and beside another service."""

import json
import random
import subprocess
import sys

import pytest

from tests.service.api.served import START, Server, udp_capture

pytestmark = pytest.mark.whole

FLOWS = 6_000
CAPTURE = udp_capture(FLOWS, payload_bytes=4)
KILLS = 5
ENDS = ("done", "failed", "cancelled")
FLAGS = ("--traces", "none")


def submit(server, capture=CAPTURE):
    status, body = server.ask("POST", "/v1/jobs", capture)
    assert status == 202, body
    return json.loads(body)["id"]


def job(server, id):
    return json.loads(server.ask("GET", f"/v1/jobs/{id}")[1])


def ended(server, id):
    return server.wait(lambda: (found := job(server, id))["state"] in ENDS and found)


def left(folder):
    return sorted(path.name for path in (folder / "tapline" / "jobs").iterdir() if path.is_dir())


@pytest.mark.slow
def test_killed_at_any_moment_a_job_runs_again_and_its_result_is_whole(tmp_path, checkpoint_dir):
    with Server(tmp_path, checkpoint_dir, *FLAGS) as server:
        first, second = submit(server), submit(server)
    chance = random.Random(5)
    for _ in range(KILLS):
        reached = chance.randrange(FLOWS)
        with Server(tmp_path, checkpoint_dir, *FLAGS) as server:
            found = job(server, first)
            while found["flows"] < reached and found["state"] not in ENDS:
                found = job(server, first)
            assert found["state"] != "failed"
            status, body = server.ask("GET", f"/v1/jobs/{first}/result")
            assert status == (200 if found["state"] == "done" else status)
            assert status == 409 or json.loads(body)["summary"]["classified"] == FLOWS  # never half a result
    with Server(tmp_path, checkpoint_dir, *FLAGS) as server:
        for id in (first, second):
            assert ended(server, id)["state"] == "done"
            _, body = server.ask("GET", f"/v1/jobs/{id}/result")
            flows = json.loads(body)["flows"]
            assert len({flow["uid"] for flow in flows}) == len(flows) == FLOWS
            assert sorted(path.name for path in (tmp_path / "tapline" / "jobs" / id).iterdir()) == [
                "capture", "job.json", "result.db"
            ]  # fmt: skip


def test_a_service_that_stops_leaves_its_jobs_for_the_next(tmp_path, checkpoint_dir):
    with Server(tmp_path, checkpoint_dir, *FLAGS, "--shutdown-seconds", 1) as server:
        id = submit(server)
        assert server.stop() == 0
        assert "Traceback" not in server.log
    with Server(tmp_path, checkpoint_dir, *FLAGS) as server:
        assert ended(server, id)["summary"]["classified"] == FLOWS


def test_no_room_for_a_capture_is_507_and_leaves_nothing(tmp_path, checkpoint_dir):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    with Server(tmp_path, checkpoint_dir, *FLAGS, before=limit) as server:
        status, body = server.ask("POST", "/v1/jobs", CAPTURE)
        assert (status, json.loads(body)["error"]["code"]) == (507, "no_room")
        assert left(tmp_path) == []
        full = ended(server, submit(server, udp_capture(1000, payload_bytes=20)))
        assert (full["state"], full["summary"]) == ("failed", None)
        assert full["error"].startswith("the result cannot be written")
        assert [path.name for path in (tmp_path / "tapline" / "jobs" / full["id"]).iterdir()] == ["job.json"]
        assert ended(server, submit(server, udp_capture(5)))["state"] == "done"
        assert "Traceback" not in server.log


def test_a_client_that_goes_away_leaves_nothing(tmp_path, checkpoint_dir):
    with Server(tmp_path, checkpoint_dir, *FLAGS) as server:
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(CAPTURE)}\r\n\r\n".encode()
        client = server.connect(head, CAPTURE[: len(CAPTURE) // 2])
        server.wait(lambda: left(tmp_path))
        client.close()
        server.wait(lambda: not left(tmp_path))
        assert json.loads(server.ask("GET", "/v1/jobs")[1]) == {"jobs": []}


@pytest.mark.parametrize("history", ["sqlite", "none"])
def test_a_second_service_on_the_same_directory_says_so(tmp_path, checkpoint_dir, history):
    with Server(tmp_path, checkpoint_dir, *FLAGS, "--history", history):
        command = [sys.executable, "-P", "-c", START.format(before="pass"), "serve", "--port", "0", *FLAGS]
        command += ["--checkpoint", str(checkpoint_dir), "--data-dir", str(tmp_path / "tapline"), "--history", history]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert second.returncode == 1
    assert "another" in second.stderr
    assert "--data-dir of its own" in second.stderr
    assert "Traceback" not in second.stderr
