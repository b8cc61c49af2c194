"""What each key may do, on every route; sessions of browsers; what is told to whom, and what the account says of it."""

import hashlib
import json
import re
import subprocess
import sys

import pytest

from tapline.service.access import audit
from tapline.service.access.key_file import add_key, remove_key
from tapline.service.access.keys import make_key, new_key
from tapline.service.access.scopes import ROUTES, SCOPES, covers, wanted_scope
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.logged import capture_logs
from tests.paths import ROOT
from tests.service.api.client import api_client

ALL_ROUTES = """
import json, sys
from functools import partial
from pathlib import Path
from nicegui import core
from tapline.service.api.app import create_app
from tapline.service.dashboard.mount import mount_dashboard
from tapline.service.runtime import Service
from tapline.service.settings import Settings

settings = Settings(checkpoint=sys.argv[1], traces=["none"], history="none", data_dir=Path(sys.argv[2]))
service = Service(settings)
app = create_app(service, partial(mount_dashboard, service))
print(json.dumps([[route.path, sorted(getattr(route, "methods", None) or ())]
                  for routes in (app.routes, core.app.routes) for route in routes if route.path]))
"""

BELOW = {
    "/_nicegui_ws": "/_nicegui_ws/{rest:path}",
    "/_nicegui": "/_nicegui/{file:path}",
    "/static-offline-docs": "/static-offline-docs/{file:path}",
}


class Keys:
    """A file with a key of each scope."""

    def __init__(self, path):
        self.path = path
        self.of = {scope: self.add(scope, scope) for scope in SCOPES}

    def add(self, name, scope):
        key, text = make_key(name, scope)
        add_key(self.path, key)
        return text

    def headers(self, scope):
        return {"x-api-key": self.of[scope]}


def make_client(checkpoint_dir, folder, **settings):
    keys = Keys(folder / "keys")
    service = Service(
        Settings(
            checkpoint=checkpoint_dir, traces=["none"], data_dir=folder / "data", keys_file=keys.path,
            audit_log=folder / "audit.jsonl", **settings,
        )
    )  # fmt: skip
    client = api_client(service, follow_redirects=False)
    client.keys, client.service, client.folder = keys, service, folder
    return client


@pytest.fixture(scope="module")
def client(checkpoint_dir, tmp_path_factory):
    with make_client(checkpoint_dir, tmp_path_factory.mktemp("access"), rate_limit_per_minute=0) as found:
        yield found


@pytest.fixture
def own(checkpoint_dir, tmp_path):
    """A service of the test's own; the file of keys is looked at for every request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tapline.service.access.key_file.LOOK_SECONDS", 0)
        with make_client(checkpoint_dir, tmp_path, failed_keys_per_minute=3, rate_limit_per_minute=30) as found:
            yield found


def account(client):
    return [json.loads(line) for line in (client.folder / "audit.jsonl").read_text().splitlines()]


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def sign_in(client, key, target="/metrics", **headers):
    sent = {"origin": "http://127.0.0.1", **headers}
    return client.post("/sign-in", data={"key": key, "next": target}, headers=sent)


def test_every_route_is_in_the_table(checkpoint_dir, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", ALL_ROUTES, str(checkpoint_dir), str(tmp_path / "data")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    routes = json.loads(found.stdout.splitlines()[-1])
    assert len(routes) > 30
    missing = []
    for path, methods in routes:
        if path == "/_nicegui_ws":
            methods = ["WEBSOCKET", "GET", "POST"]  # what socket.io speaks
        is_listed = {method for method in (methods or ["GET"]) if method != "HEAD"}
        path = next((name for start, name in BELOW.items() if path.startswith(start)), path)
        missing += [f"{method} {path}" for method in is_listed if f"{method} {path}" not in ROUTES]
    assert missing == []


def test_what_is_not_in_the_table_wants_the_most():
    assert wanted_scope("GET", "/nowhere") == "read"
    assert wanted_scope("POST", "/nowhere") == "admin"
    assert wanted_scope("PUT", "/v1/models") == "admin"
    assert wanted_scope("WEBSOCKET", "/nowhere") == "admin"
    assert wanted_scope("HEAD", "/v1/models") == "read"
    assert wanted_scope("POST", "/v1/models/a/b/load") == "admin"


@pytest.mark.parametrize("held", SCOPES)
@pytest.mark.parametrize("route", [route for route in ROUTES if "nicegui" not in route and "/v1/stream" not in route])
def test_each_scope_on_each_route(client, route, held):
    method, path = route.split(" ")
    path = re.sub(r"\{number\}", "1", re.sub(r"\{(?!number)[^}]*\}", "none", path))
    answer = client.request(method, path, headers=client.keys.headers(held))
    refused = answer.status_code == 403 and code(answer) == (403, "scope")
    assert refused == (not covers(held, ROUTES[route]))
    if ROUTES[route] != "open":
        assert client.request(method, path).status_code == 401


def test_one_key_of_the_setting_has_all_scopes_beside_the_file(checkpoint_dir, tmp_path):
    keys = Keys(tmp_path / "keys")
    line, text = make_key("by-environment", "read")
    service = Service(
        Settings(
            checkpoint=checkpoint_dir, traces=["none"], data_dir=tmp_path / "data", keys_file=keys.path,
            api_key="old one", keys=[line.line()],
        )
    )  # fmt: skip
    with api_client(service) as client:
        for key, status in (
            (text, 403),
            ("old one", 404),
            (keys.of["admin"], 404),
            (new_key(), 401),
            (line.line(), 401),
        ):
            assert client.post("/v1/models/none/load", headers={"x-api-key": key}).status_code == status


def test_a_hash_of_something_typed_opens_nothing(checkpoint_dir, tmp_path):
    """What people make up is never taken for a key of a file, however its hash came to stand there."""
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(f"weak admin sha256:{hashlib.sha256(b'hunter2').hexdigest()}\n")
    settings = Settings(checkpoint=checkpoint_dir, traces=["none"], data_dir=tmp_path / "data", keys_file=path)
    with api_client(Service(settings)) as client:
        assert client.get("/v1/models", headers={"x-api-key": "hunter2"}).status_code == 401


def test_a_request_carries_no_row_of_guesses(client):
    many = [(b"x-api-key", new_key().encode()), (b"x-api-key", new_key().encode())]
    good = (b"x-api-key", client.keys.of["read"].encode())
    assert client.get("/v1/models", headers=[*many, good]).status_code == 401
    assert client.get("/v1/models", headers=[many[0], good]).status_code == 200


def test_a_revoked_key_opens_nothing_any_more(own):
    headers = own.keys.headers("read")
    assert own.get("/v1/models", headers=headers).status_code == 200
    remove_key(own.keys.path, "read")
    assert own.get("/v1/models", headers=headers).status_code == 401
    fresh = own.keys.add("fresh", "read")
    assert own.get("/v1/models", headers={"x-api-key": fresh}).status_code == 200


def test_a_browser_is_led_to_the_page_and_back(client):
    html = {"accept": "text/html,application/xhtml+xml"}
    answer = client.get("/metrics?x=1&y=%2F", headers=html)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=/metrics%3Fx%3D1%26y%3D%252F"
    page = client.get(answer.headers["location"])
    assert page.status_code == 200
    assert 'name="next" value="/metrics?x=1&amp;y=%2F"' in page.text
    assert "<script" not in page.text
    assert client.get("/metrics").status_code == 401
    assert client.post("/v1/jobs", headers=html).status_code == 401


def test_a_session_from_sign_in_to_sign_out(own):
    answer = sign_in(own, own.keys.of["read"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/metrics")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("tapline_session=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    token = own.cookies["tapline_session"]
    assert own.get("/metrics").status_code == 200
    assert own.get("/sign-in?next=/flows").headers["location"] == "/flows"
    assert code(own.post("/v1/models/x/load", headers={"origin": "http://127.0.0.1"})) == (403, "scope")
    assert own.post("/sign-out", headers={"origin": "http://127.0.0.1"}).headers["location"] == "/sign-in"
    assert "tapline_session" not in own.cookies
    own.cookies["tapline_session"] = token  # a browser that kept it
    assert own.get("/metrics").status_code == 401
    told = [(line["key"], line["action"], line["outcome"]) for line in account(own)]
    assert told == [
        ("read", "sign in", "done"), ("read", "POST /v1/models/x/load", "403 scope"), ("read", "sign out", "done"),
        ("read", "end session", "signed out"),
    ]  # fmt: skip


def test_under_tls_the_cookie_is_for_this_host_alone(client):
    client.base_url = "https://127.0.0.1"
    try:
        answer = sign_in(client, client.keys.of["read"], origin="https://127.0.0.1")
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-tapline_session=")
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
        assert client.get("/metrics").status_code == 200
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert sign_in(client, client.keys.of["read"], origin="http://127.0.0.1").status_code == 403  # no TLS there
    finally:
        client.base_url = "http://127.0.0.1"
        client.cookies.clear()


def test_signing_in_again_ends_the_session_before(own):
    sign_in(own, own.keys.of["read"])
    before = own.cookies["tapline_session"]
    sign_in(own, own.keys.of["admin"])
    assert own.cookies["tapline_session"] != before
    ends = [(line["key"], line["outcome"]) for line in account(own) if line["action"] == "end session"]
    assert ends == [("read", "signed in anew")]
    own.cookies.clear()
    own.cookies["tapline_session"] = before
    assert own.get("/metrics").status_code == 401


@pytest.mark.parametrize(("change", "status"), [("remove", 401), ("demote", 403)])
def test_a_session_has_what_its_key_has_now(own, change, status):
    sign_in(own, own.keys.of["admin"])
    headers = {"origin": "http://127.0.0.1"}
    assert own.post("/v1/models/none/load", headers=headers).status_code == 404
    if change == "remove":
        remove_key(own.keys.path, "admin")
    else:
        own.keys.path.write_text(own.keys.path.read_text().replace("admin admin", "admin classify"))
    assert own.post("/v1/models/none/load", headers=headers).status_code == status
    ends = [(line["key"], line["outcome"]) for line in account(own) if line["action"] == "end session"]
    assert ends == ([("admin", "key revoked")] if change == "remove" else [])
    own.cookies.clear()


@pytest.mark.parametrize("headers", [{}, {"origin": "null"}, {"origin": "http://evil.example"},
                                     {"origin": "http://127.0.0.1:1"}, {"sec-fetch-site": "same-site"},
                                     {"sec-fetch-site": "cross-site"}])  # fmt: skip
def test_a_session_changes_nothing_for_who_does_not_say_whence_it_comes(client, headers):
    sign_in(client, client.keys.of["admin"])
    try:
        for path in ("/v1/models/none/load", "/v1/models/none/unload", "/v1/jobs", "/v1/classify/pcap"):
            assert code(client.post(path, headers=headers)) == (403, "foreign_page")
        assert code(client.delete("/v1/jobs/none", headers=headers)) == (403, "foreign_page")
    finally:
        client.cookies.clear()


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_a_foreign_page_signs_nobody_in_or_out(client, headers):
    key = client.keys.of["read"]
    assert code(client.post("/sign-in", data={"key": key}, headers=headers)) == (403, "foreign_page")
    assert code(client.post("/sign-out", headers=headers)) == (403, "foreign_page")


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "/\t/evil.example", "",
     "/\u00e4", "/" + "a" * 2000, "flows"],
)  # fmt: skip
def test_signing_in_leads_nowhere_else(client, target):
    assert sign_in(client, client.keys.of["read"], target).headers["location"] == "/"
    client.cookies.clear()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"key=" + b"x" * 5000, "application/x-www-form-urlencoded", 413), (b"{}", "application/json", 415),
        (b"key", "application/x-www-form-urlencoded", 400), (b"key=\xff", "application/x-www-form-urlencoded", 400),
        (b"a=1&b=2&c=3&d=4&e=5", "application/x-www-form-urlencoded", 400),
        (b"", "application/x-www-form-urlencoded", 401),
    ],
)  # fmt: skip
def test_forms_that_are_none(client, body, kind, status):
    answer = client.post("/sign-in", content=body, headers={"content-type": kind, "origin": "http://127.0.0.1"})
    assert answer.status_code == status


def test_wrong_keys_are_limited_by_client_and_told_once(own, monkeypatch):
    wrong = {"x-api-key": "wrong"}
    for _ in range(3):
        assert own.get("/v1/models", headers=wrong).status_code == 401
    limited = own.get("/v1/models", headers=wrong)
    assert code(limited) == (429, "too_many_wrong_keys")
    assert 1 <= int(limited.headers["retry-after"]) <= 20
    page = sign_in(own, "wrong")
    assert page.status_code == 429
    assert "come again" in page.text
    assert own.get("/v1/models", headers=own.keys.headers("read")).status_code == 200  # nobody is locked out
    assert own.get("/v1/models").status_code == 401  # no key at all is no guess
    refused = own.service.metrics.requests_refused
    assert refused.labels("unauthorized")._value.get() == 4
    assert refused.labels("too_many_wrong_keys")._value.get() == 1
    assert [(line["action"], line["outcome"]) for line in account(own)] == [("give a key", "refused")]


def test_a_typed_key_cannot_be_guessed_further_once_there_were_too_many(checkpoint_dir, tmp_path):
    settings = Settings(checkpoint=checkpoint_dir, traces=["none"], data_dir=tmp_path, api_key="k3y",
                        failed_keys_per_minute=2)  # fmt: skip
    with api_client(Service(settings)) as client:
        for wrong in ("a", "b"):
            assert client.get("/v1/models", headers={"x-api-key": wrong}).status_code == 401
        assert client.get("/v1/models", headers={"x-api-key": "k3y"}).status_code == 429


def test_failures_are_summed_up(checkpoint_dir, tmp_path):
    with make_client(checkpoint_dir, tmp_path, failed_keys_per_minute=3) as client:
        for _ in range(5):
            client.get("/v1/models", headers={"x-api-key": "wrong"})
    first, rest = account(client)
    assert (first["client"], first["key"], "times" in first) == ("testclient", "-", False)
    assert (rest["action"], rest["outcome"], rest["times"]) == ("give a key", "refused", 4)
    assert first["time"] <= rest["first"] <= rest["last"] <= rest["time"]


def test_failures_of_many_clients_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "MAX_CLIENTS", 3)
    found = audit.Audit(tmp_path / "audit")
    for number in range(10):
        found.failed_key(f"192.0.2.{number}")
    found.close()
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [line["client"] for line in lines] == ["192.0.2.0", "192.0.2.1", "192.0.2.2", "others", "others"]
    assert lines[-1]["times"] == 6


def test_a_key_has_so_many_requests_a_minute(own):
    headers = own.keys.headers("read")
    statuses = [own.get("/v1/models", headers=headers).status_code for _ in range(31)]
    assert statuses == [200] * 30 + [429]
    limited = own.get("/v1/models", headers=headers)
    assert code(limited) == (429, "rate_limit")
    assert limited.headers["retry-after"] == "2"
    assert own.get("/v1/models", headers=own.keys.headers("admin")).status_code == 200
    assert own.get("/healthz", headers=headers).status_code == 200


def test_every_change_leaves_a_line_without_the_key(own):
    for scope in ("classify", "admin"):
        own.post("/v1/models/none/load?version=2", headers=own.keys.headers(scope))
        own.delete("/v1/jobs/none", headers=own.keys.headers(scope))
    own.get("/v1/models", headers=own.keys.headers("admin"))
    text = (own.folder / "audit.jsonl").read_text()
    assert [(line["client"], line["key"], line["action"], line["outcome"]) for line in account(own)] == [
        ("testclient", "classify", "POST /v1/models/none/load?version=2", "403 scope"),
        ("testclient", "classify", "DELETE /v1/jobs/none", "404"),
        ("testclient", "admin", "POST /v1/models/none/load?version=2", "404"),
        ("testclient", "admin", "DELETE /v1/jobs/none", "404"),
    ]
    assert not [key for key in own.keys.of.values() if key in text]
    assert (own.folder / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_change_that_fails_leaves_a_line(own, monkeypatch):
    async def broken(*_):
        raise RuntimeError("disk")

    monkeypatch.setattr(own.service, "unload_model", broken)
    with pytest.raises(RuntimeError):
        own.post("/v1/models/none/unload", headers=own.keys.headers("admin"))
    assert [(line["action"], line["outcome"]) for line in account(own)] == [("POST /v1/models/none/unload", "500")]


def test_cookies_of_others_on_this_host_are_no_hindrance(own):
    sign_in(own, own.keys.of["read"])
    token = own.cookies["tapline_session"]
    own.cookies.clear()
    headers = {"cookie": f'theirs={{"a": [1, "b"]}}; tapline_session={token}; x'}
    assert own.get("/metrics", headers=headers).status_code == 200


def test_who_has_no_key_may_nothing_on_open_routes_either(client):
    access = next(layer.kwargs["access"] for layer in client.app.user_middleware if "access" in layer.kwargs)
    assert not access.nobody("192.0.2.1").may("read")


def test_the_account_can_be_rotated_and_where_it_fails_goes_to_the_log(own):
    (own.folder / "audit.jsonl").rename(own.folder / "audit.jsonl.1")
    own.post("/v1/models/none/load", headers=own.keys.headers("admin"))
    assert len(account(own)) == 1
    (own.folder / "audit.jsonl").unlink()
    (own.folder / "audit.jsonl").mkdir()
    with capture_logs() as logged:
        own.post("/v1/models/none/unload", headers=own.keys.headers("admin"))
    said = str(logged)
    assert "the audit log cannot be written" in said
    assert "POST /v1/models/none/unload" in said


def test_a_job_is_of_the_key_that_handed_it_in(client):
    def submit(scope):
        answer = client.post("/v1/jobs", content=b"no capture", headers=client.keys.headers(scope))
        assert answer.status_code == 202
        return answer.json()

    mine, theirs = submit("classify"), submit("admin")
    assert (mine["owner"], theirs["owner"]) == ("classify", "admin")
    headers = client.keys.headers("classify")
    assert code(client.delete(f"/v1/jobs/{theirs['id']}", headers=headers)) == (403, "scope")
    assert client.get(f"/v1/jobs/{theirs['id']}", headers=headers).status_code == 200
    assert client.delete(f"/v1/jobs/{mine['id']}", headers=headers).status_code == 200
    assert client.delete(f"/v1/jobs/{theirs['id']}", headers=client.keys.headers("admin")).status_code == 200


@pytest.mark.parametrize(
    ("path", "policy"),
    [("/v1/models", "default-src 'none'"), ("/docs", "script-src 'self'"), ("/sign-in", "style-src 'sha256-"),
     ("/healthz", "default-src 'none'"), ("/nowhere", "default-src 'none'")],
)  # fmt: skip
def test_what_browsers_are_told(client, path, policy):
    headers = client.get(path, headers=client.keys.headers("read")).headers
    assert policy in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "strict-transport-security" not in headers


def test_the_description_names_scopes(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert paths["/v1/models/{name}/load"]["post"]["security"] == [{"bearer": ["admin"]}, {"key": ["admin"]}]
    assert "429" in paths["/v1/flows"]["get"]["responses"]
    assert "security" not in paths["/healthz"]["get"]
