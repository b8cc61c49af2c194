"""Clients that stall, break off or go away: each ends by itself, gives back all it held, and costs one calm line."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.service.api.served import Server, head, read_answer, udp_capture

pytestmark = pytest.mark.whole

MANY_FLOWS = udp_capture(9000, payload_bytes=500, gap_us=100_000)
FEW_FLOWS = udp_capture(20)
TRACEBACKS = re.compile(r"Traceback|Unknown child|Event loop is closed|Exception|exception")


@pytest.fixture
def server(tmp_path, checkpoint_dir):
    flags = ("--traces", "none", "--max-uploads", 2, "--client-timeout-seconds", 2)
    with Server(tmp_path, checkpoint_dir, *flags) as server:
        yield server
        assert not TRACEBACKS.search(server.log), server.log


def test_a_body_that_stalls_is_given_up_and_its_place_is_free(server):
    clients = [server.connect(head("Content-Length: 100000"), FEW_FLOWS) for _ in range(2)]
    server.wait(lambda: not server.answers("/readyz"))
    assert server.upload(FEW_FLOWS)[0] == 503
    for client in clients:
        status, body = read_answer(client)
        assert (status, body["error"]["code"]) == (408, "request_timeout")
        client.close()
    server.wait_free()
    assert server.upload(FEW_FLOWS)[0] == 200
    assert server.log.count("the body came too slowly") == 2


@pytest.mark.parametrize("sent", [b"GET /healthz HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_head_that_never_ends(server, sent):
    with server.connect(sent) as client:
        assert read_answer(client)[0] == 408


def test_a_silent_connection_is_closed_without_a_word(server):
    with server.connect() as client:
        assert client.recv(100) == b""
    assert "connection closed" not in server.log


@pytest.mark.parametrize("sent", [head("Transfer-Encoding: chunked") + b"none\r\n", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_what_is_no_http_is_answered_in_the_one_shape(server, sent):
    with server.connect(sent) as client:
        status, body = read_answer(client)
    assert (status, body["error"]["code"]) == (400, "bad_request")
    server.wait_free()


def test_an_answer_goes_out_before_its_body_came_and_the_connection_does_not_stay(server):
    with server.connect(head("Content-Length: 30000000", path="/nowhere")) as client:
        status, body = read_answer(client)
    assert (status, body["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/json"])
def test_a_reader_that_stalls_is_cut_off(server, accept):
    request = head(f"Content-Length: {len(MANY_FLOWS)}", f"Accept: {accept}") + MANY_FLOWS
    with server.connect(request, receive_bytes=4096) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        server.wait(lambda: "the answer was not read" in server.log)
        server.wait_free()
        server.wait(lambda: not server.children)


def stop_worker(server):
    """Hold the worker where it is; not before it is one, or its parent would wait for it."""
    (worker,) = server.wait(lambda: server.children)
    server.wait(lambda: b"capture_worker" in Path(f"/proc/{worker}/cmdline").read_bytes())
    os.kill(worker, signal.SIGSTOP)


def in_the_head(server):
    return server.connect(head("Content-Length: 100000")[:20])


def in_the_body(server):
    return server.connect(head("Content-Length: 100000"), FEW_FLOWS)


def in_a_multipart_body(server):
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(1 << 21)
    return server.connect(head("Content-Length: 3000000", "Content-Type: multipart/form-data; boundary=x"), part)


def before_the_first_flow(server):
    client = server.connect(head(f"Content-Length: {len(MANY_FLOWS)}"), MANY_FLOWS)
    stop_worker(server)
    return client


def in_the_answer(server):
    client = server.connect(head(f"Content-Length: {len(MANY_FLOWS)}"), MANY_FLOWS, receive_bytes=4096)
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    return client


STAGES = [in_the_head, in_the_body, in_a_multipart_body] * 18 + [before_the_first_flow] * 10 + [in_the_answer] * 6


def test_a_client_that_goes_away_leaves_nothing_behind(server):
    assert server.upload(FEW_FLOWS)[0] == 200
    server.wait(lambda: not server.children)
    before = server.descriptors
    for stage in STAGES:
        client = stage(server)
        client.close()
        server.wait_free()
        server.wait(lambda: not server.children)
    assert server.upload(FEW_FLOWS)[0] == 200
    server.wait(lambda: server.descriptors <= before)
    assert server.log.count("request ended with its connection") <= len(STAGES) == 70
    assert len(server.log.splitlines()) < 80
    assert server.stop() == 0


@pytest.mark.parametrize("stage", [in_the_body, before_the_first_flow, in_the_answer])
def test_a_request_at_work_is_cut_off_when_the_service_stops(tmp_path, checkpoint_dir, stage):
    flags = ("--traces", "none", "--shutdown-seconds", 0.5)
    with Server(tmp_path, checkpoint_dir, *flags) as server, stage(server):
        server.wait(lambda: server.answers("/healthz"))
        assert server.stop() == 0
        assert "cutting requests off" in server.log
        assert not TRACEBACKS.search(server.log), server.log
