"""Who is let in: names, pages and keys, on every route, before a body is read."""

import pytest

from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.service.api.client import api_client

KEY = "schlüssel"
ROUTES = [
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/"), ("GET", "/docs"), ("GET", "/redoc"),
    ("GET", "/openapi.json"), ("GET", "/static-offline-docs/swagger-ui.css"), ("GET", "/v1/live"),
    ("GET", "/v1/traces"), ("GET", "/v1/models"),
    ("POST", "/v1/models/random/load"), ("POST", "/v1/models/random/unload"),
    ("POST", "/v1/classify/pcap"), ("POST", "/v1/classify/flows"), ("GET", "/nowhere"), ("OPTIONS", "/v1/models"),
]  # fmt: skip
OPEN = {"/healthz", "/readyz", "/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css"}


def make_client(checkpoint_dir, data_dir, **settings):
    service = Service(Settings(checkpoint=checkpoint_dir, traces=["none"], data_dir=data_dir, **settings))
    return api_client(service, follow_redirects=False)


@pytest.fixture(scope="module")
def local(checkpoint_dir, tmp_path_factory):
    with make_client(checkpoint_dir, tmp_path_factory.mktemp("local")) as client:
        yield client


@pytest.fixture(scope="module")
def remote(checkpoint_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    with make_client(
        checkpoint_dir, folder, host="0.0.0.0", api_key=KEY, served_names="tapline.example, 192.0.2.7"
    ) as client:
        yield client


def code(response):
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_answers_a_foreign_name_or_page(local, method, path):
    assert code(local.request(method, path, headers={"host": "evil.example"})) == (421, "foreign_host")
    assert code(local.request(method, path, headers={"origin": "http://evil.example"})) == (403, "foreign_page")
    assert code(local.request(method, path, headers={"sec-fetch-site": "cross-site"})) == (403, "foreign_page")
    assert local.request(method, path).status_code not in (403, 421)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.9", "0.0.0.0", "",
        "a@127.0.0.1", "127.0.0.1:80:80", "[::1", "2130706433", "tapline.example", "127.0.0.1 evil",
        "127.0.0.1/x", "\uff4cocalhost",
    ],
)  # fmt: skip
def test_hosts_that_are_not_the_machine_itself(local, host):
    assert local.get("/healthz", headers=[(b"host", host.encode())]).status_code == 421


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9000", "localhost:8000", "LOCALHOST.", "[::1]:8000", "127.8.8.8"]
)
def test_hosts_that_are(local, host):
    assert local.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("tapline.example", True), ("Tapline.Example.:8000", True), ("192.0.2.7", True), ("10.1.2.3:8000", True),
        ("[2001:db8::1]:8000", True), ("localhost", True), ("other.example", False), ("x.tapline.example", False),
    ],
)  # fmt: skip
def test_elsewhere_addresses_and_named_names_are_served(remote, host, served):
    for path in ("/healthz", "/metrics"):
        answer = remote.get(path, headers=[(b"host", host.encode()), (b"x-api-key", KEY.encode())])
        assert answer.status_code == (200 if served else 421)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "file://"}, 403),
        ({"origin": "http://127.0.0.1.evil.example"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
    ],
)
def test_pages(local, headers, status):
    assert local.get("/v1/models", headers=headers).status_code == status


def test_a_page_behind_a_proxy_that_serves_a_name(remote):
    headers = [(b"host", b"10.0.0.1:8000"), (b"x-api-key", KEY.encode())]
    for origin, status in (
        (b"https://tapline.example", 200), (b"https://evil.example", 403), (b"https://tapline.example:8443", 403),
        (b"ftp://tapline.example", 403),
    ):  # fmt: skip
        assert remote.get("/v1/models", headers=[*headers, (b"origin", origin)]).status_code == status


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_probes_and_documentation_wants_the_key(remote, method, path):
    answer = remote.request(method, path)
    assert (answer.status_code == 401) == (path not in OPEN)
    if path not in OPEN:
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"x-api-key", KEY.encode(), 200),
        (b"x-api-key", KEY.encode("iso-8859-1"), 200),
        (b"authorization", b"Bearer " + KEY.encode(), 200),
        (b"authorization", b"bearer  " + KEY.encode(), 200),
        (b"authorization", b"BEARER " + KEY.encode(), 200),
        (b"authorization", KEY.encode(), 401),
        (b"authorization", b"Basic " + KEY.encode(), 401),
        (b"authorization", b"Bearer", 401),
        (b"x-api-key", b"", 401),
        (b"x-api-key", KEY.encode()[:-1], 401),
    ],
)
def test_keys(remote, name, value, status):
    assert remote.get("/v1/models", headers=[(name, value)]).status_code == status


def test_a_key_is_asked_for_before_the_body(remote):
    def never():
        yield b"x"
        raise AssertionError("the body was read")

    for path in ("/v1/classify/pcap", "/v1/classify/flows"):
        assert remote.post(path, content=never(), headers={"content-type": "application/json"}).status_code == 401


def test_health_can_be_asked_for_its_head_alone(local):
    for path in ("/healthz", "/readyz"):
        answer = local.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_what_is_answered_stays_out_of_foreign_pages(local):
    for path in ("/docs", "/v1/models", "/nowhere"):
        headers = local.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_documentation_says_what_keys_there_are(local, remote):
    document = remote.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("401" in operation["responses"]) == ("security" in operation) == (path not in OPEN)
            assert {"403", "421"} <= set(operation["responses"])
    assert "securitySchemes" not in local.get("/openapi.json").json()["components"]


@pytest.mark.parametrize("name", ["API_KEY", "ZEEK_KEY", "HOST", "CHECKPOINT"])
@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_setting_is_an_error(monkeypatch, name, value):
    monkeypatch.setenv(f"TAPLINE_{name}", value)
    with pytest.raises(ValueError, match=f"TAPLINE_{name} is empty"):
        Settings(host="0.0.0.0") if name != "HOST" else Settings()


def test_an_empty_key_opens_nothing(monkeypatch):
    with pytest.raises(ValueError, match="TAPLINE_API_KEY is empty"):
        Settings(host="0.0.0.0", api_key="")
    with pytest.raises(ValueError, match="without blanks"):
        Settings(api_key="key\n")
    monkeypatch.setenv("TAPLINE_ZEEK", "")  # of a list, empty means none
    assert Settings().zeek == []
