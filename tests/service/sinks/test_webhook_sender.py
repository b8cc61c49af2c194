"""Webhooks to a real HTTP server that answers, fails, redirects, hangs and drips."""

import base64
import json
import re
import ssl
import subprocess
import sys

import pytest
import trustme

from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import OutputError, parse_output
from tapline.service.sinks.sender import AwayError
from tapline.service.sinks.webhook_sender import WebhookSender, signature
from tests.paths import ROOT
from tests.service.sinks.records import add_up, numbered, outputs_of, pending, until

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").write_text(SECRET + "\n")
    return tmp_path / "secret"


def sender(url):
    return WebhookSender(parse_output(url))


def records(count):
    return [numbered("flows", number) for number in range(count)]


def test_a_batch_is_posted_and_signed(serve, secret):
    hook = serve()
    assert sender(f"{hook.url()}secret_file={secret}").send(records(3)) == []
    ((path, headers, body, found),) = hook.posts
    assert (path, found) == ("/hooks/T0", [0, 1, 2])
    assert headers["Content-Type"] == "application/json"
    expected = signature(
        b"0123456789abcdef0123456789abcdef", headers["webhook-id"], int(headers["webhook-timestamp"]), body
    )
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_the_signature_is_that_of_standard_webhooks():
    """The example of its specification and of its libraries."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_a_batch_has_one_name_however_often_it_comes(serve):
    hook = serve()
    once = sender(hook.url())
    for count in (3, 3, 4):
        once.send(records(count))
    names = [headers["webhook-id"] for _, headers, _, _ in hook.posts]
    assert names[0] == names[1] != names[2]
    assert "webhook-signature" not in hook.posts[0][1]


def test_the_verification_in_the_guide_takes_what_is_sent_and_nothing_else(serve, secret, tmp_path):
    (code,) = re.findall(r"```python\n(import base64.*?)```", (ROOT / "docs/outputs.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 14
    hook = serve()
    sender(f"{hook.url()}secret_file={secret}").send(records(2))
    _, headers, body, _ = hook.posts[0]
    headers = {name.lower(): value for name, value in headers.items()}
    forged = {
        "as sent": (headers, body, True),
        "another body": (headers, body + b" ", False),
        "another time": ({**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}, body, False),
        "another name": ({**headers, "webhook-id": "msg_1"}, body, False),
        "no signature": ({**headers, "webhook-signature": ""}, body, False),
    }
    old = {**headers, "webhook-timestamp": "1614265330"}
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    old["webhook-signature"] = f"v1,{signature(key, old['webhook-id'], 1614265330, body)}"
    forged["an old one again"] = (old, body, False)
    calls = "".join(f"print(is_ours({SECRET!r}, {head!r}, {text!r}))\n" for head, text, _ in forged.values())
    (tmp_path / "verify.py").write_text(code + calls)
    command = [sys.executable, str(tmp_path / "verify.py")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert dict(zip(forged, found, strict=True)) == {name: str(right) for name, (_, _, right) in forged.items()}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(serve, status):
    hook, other = serve(), serve()
    hook.answers = lambda _: (status, {"Location": other.url()})
    with pytest.raises(AwayError, match=f"answers {status}: redirects are not followed"):
        sender(hook.url()).send(records(1))
    assert other.posts == []


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(serve, status):
    hook = serve()
    hook.answers = lambda _: (status, {"Retry-After": "7"})
    with pytest.raises(AwayError, match=f"the server answers {status}") as error:
        sender(hook.url()).send(records(2))
    assert error.value.retry_after_seconds == 7
    assert [record.line for record in error.value.rest] == [record.line for record in records(2)]


@pytest.mark.parametrize("wanted", ["", "-1", "x", "1e9", "Wed, 21 Oct 2026 07:28:00 GMT", "²"])
def test_a_time_to_wait_that_is_no_number_is_left_out(serve, wanted):
    hook = serve()
    hook.answers = lambda _: (503, {"Retry-After": wanted.encode("latin-1", "replace").decode("latin-1")})
    with pytest.raises(AwayError) as error:
        sender(hook.url()).send(records(1))
    assert error.value.retry_after_seconds == 0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_bad_record_costs_itself(serve, status):
    hook = serve()
    hook.answers = lambda found: (status, {}) if 5 in found else (204, {})
    assert sender(hook.url()).send(records(12)) == [numbered("flows", 5)]
    taken = [number for *_, found in hook.posts if 5 not in found for number in found]
    assert sorted(taken) == [number for number in range(12) if number != 5]
    assert len(hook.posts) <= 2 * 12


def test_a_failure_amid_halves_brings_back_what_had_not_arrived(serve):
    hook = serve()
    hook.answers = lambda found: (413, {}) if len(found) > 3 else (503, {}) if 5 in found else (200, {})
    with pytest.raises(AwayError) as error:
        sender(hook.url()).send(records(8))
    arrived = {number for *_, found in hook.posts if len(found) <= 3 and 5 not in found for number in found}
    rest = {json.loads(record.line)["number"] for record in error.value.rest}
    assert arrived | rest == set(range(8))
    assert not arrived & rest
    assert arrived


def test_a_server_that_hangs_is_given_up_in_time(serve):
    hook = serve()
    hook.answers = lambda _: (None, {})
    with pytest.raises(AwayError, match=r"timed out|no answer within 0\.3 s"):
        sender(f"{hook.url()}timeout_seconds=0.3").send(records(1))


def test_a_server_that_drips_is_given_up_in_time(serve):
    """Each byte comes in time, the answer never does."""
    hook = serve()
    hook.drip = True
    with pytest.raises(AwayError, match=r"no answer within 0\.3 s"):
        sender(f"{hook.url()}timeout_seconds=0.3").send(records(1))


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture
def tls(ca):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    return context


def test_https_by_a_ca_of_ones_own(serve, ca, tls, tmp_path):
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    hook = serve(tls)
    assert sender(f"{hook.url('https')}ca={tmp_path / 'ca.pem'}").send(records(1)) == []
    with pytest.raises(AwayError, match="certificate verify failed"):
        sender(hook.url("https")).send(records(1))
    assert len(hook.posts) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "cannot be read"), ("short", "16 bytes or more"), ("whsec_****", "base64"), ("ü" * 30, "ASCII")],
)
def test_a_secret_that_is_none_is_told_at_the_start_and_not_shown(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "secret").write_text(text)
    with pytest.raises(OutputError, match=problem) as error:
        sender(f"https://localhost/a?secret_file={tmp_path / 'secret'}")
    assert text is None or text not in str(error.value)


def test_a_secret_that_is_changed_signs_the_next_batch(serve, secret):
    hook = serve()
    once = sender(f"{hook.url()}secret_file={secret}")
    once.send(records(1))
    secret.write_text("another secret of some length")
    once.send(records(1))
    assert hook.posts[0][1]["webhook-signature"] != hook.posts[1][1]["webhook-signature"]
    secret.unlink()
    with pytest.raises(AwayError, match="cannot be read"):
        once.send(records(1))


async def test_a_server_that_fails_at_times_gets_everything(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("tapline.service.sinks.delivery.pause_seconds", lambda failures: 0.01)
    hook = serve()
    hook.answers = lambda _: (503 if len(hook.posts) % 3 else 200, {})
    async with outputs_of(tmp_path, hook.url() + "name=soc") as outputs:
        (delivery,) = outputs.deliveries
        for number in range(1500):
            delivery.put(pending("flows", number))
        await until(lambda: delivery.counts.written == 1500)
    taken = [number for count, (*_, found) in enumerate(hook.posts, 1) if count % 3 == 0 for number in found]
    assert taken == list(range(1500))
    assert add_up(delivery)


def test_a_record_that_no_server_takes_alone_is_refused(serve):
    hook = serve()
    hook.answers = lambda _: (413, {})
    alone = [Record("alerts", b'{"number":1}')]
    assert sender(hook.url()).send(alone) == alone
