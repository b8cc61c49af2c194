"""`/v1/stream` over real sockets: events as they come, to those who hold the key; who does not read delays nobody."""

import json

import pytest

from tapline.service.live.verdict_stream import MAX_LISTENERS
from tests.paths import DATA
from tests.service.api.served import Server, head

pytestmark = pytest.mark.whole

CAPTURE = DATA / "captures" / "android.pcap"


def listen(server, query="", receive_bytes=None):
    """A socket that has had the head of the answer and the first comment."""
    client = server.connect(head(path=f"/v1/stream{query}", method="GET"), receive_bytes=receive_bytes)
    read_until(client, b"verdicts from now on")
    return client


def read_until(client, wanted):
    data = b""
    while wanted not in data:
        piece = client.recv(1 << 16)
        assert piece, data[-500:]
        data += piece
    return data


def uids(data):
    lines = [line for line in data.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")).get("uid") for line in lines]


def test_verdicts_come_as_events_while_a_replay_plays(checkpoint_dir, tmp_path):
    with Server(tmp_path, checkpoint_dir, "--replay", CAPTURE, "--speed", "20", "--traces", "none") as server:
        with listen(server, "?host=0.0.0.0/0&kind=flow") as client:
            data = read_until(client, b"event: flow\ndata: {") + read_until(client, b"\n\n")
            assert all(uids(data.rpartition(b"\n\n")[0]))
        with listen(server, receive_bytes=4096):  # reads no more
            server.wait(lambda: "replay finished" in server.log)
        counts = json.loads(server.ask("GET", "/v1/live")[1])["counts"]
        assert counts["delivered"] > 50
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_listeners_are_bounded_and_leave_room_when_they_go(checkpoint_dir, tmp_path):
    with Server(tmp_path, checkpoint_dir, "--traces", "none") as server:
        clients = [listen(server) for _ in range(MAX_LISTENERS)]
        status, body = server.ask("GET", "/v1/stream")
        assert (status, json.loads(body)["error"]["code"]) == (503, "busy")
        for client in clients:
            client.close()
        server.wait(lambda: b"tapline_stream_clients 0.0" in server.ask("GET", "/metrics")[1])
        with listen(server):
            assert server.stop() == 0  # an open stream does not hold the end up for ever
        assert "Traceback" not in server.log


def test_the_key_is_asked_for(checkpoint_dir, tmp_path):
    with Server(tmp_path, checkpoint_dir, "--traces", "none", env={"TAPLINE_API_KEY": "k3y"}) as server:
        for path in ("/v1/stream", "/v1/flows", "/v1/traces"):
            assert server.ask("GET", path)[0] == 401
        assert server.ask("GET", "/v1/flows", headers={"X-API-Key": "k3y"})[0] == 200
        assert server.ask("GET", "/v1/stream?host=x", headers={"X-API-Key": "k3y"})[0] == 422


def test_a_second_service_on_the_same_directory_says_so(checkpoint_dir, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with Server(tmp_path, checkpoint_dir, "--traces", "none"):
        flags = ("--traces", "none", "--data-dir", tmp_path / "tapline")
        with pytest.raises(AssertionError, match=r"another service uses .* give this one a --data-dir of its own"):
            Server(other, checkpoint_dir, *flags)
