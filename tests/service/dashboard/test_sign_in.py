"""Keys in a real browser: signing in and out, what each key sees and may press, the documentation, and that a page of
another origin gets nothing done, whoever is signed in."""

import contextlib
import http.server
import json
import re
import threading
import time

import msgspec
import pytest

from tapline.service.access.key_file import add_key, remove_key
from tapline.service.access.keys import make_key
from tapline.service.access.scopes import SCOPES
from tapline.service.history.batch_writing import SeenAlert, write_batch
from tapline.service.history.database import Database
from tests.conftest import make_checkpoint
from tests.paths import DATA
from tests.service.api.served import Server
from tests.service.history.test_alerts import ALERTS

pytestmark = [pytest.mark.whole, pytest.mark.slow]

CAPTURE = DATA / "captures" / "android.pcap"
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A service with a key of each scope, and two models."""
    folder = tmp_path_factory.mktemp("signed-in")
    for name in ("random", "other"):
        make_checkpoint(folder / "models" / name / "1", name=name, version="1")
    flags = ["--repository", folder / "models", "--model", "random", "--traces", "none"]
    flags += ["--keys-file", folder / "keys", "--audit-log", folder / "audit"]
    keys = {}
    for scope in SCOPES:
        key, keys[scope] = make_key(scope, scope)
        add_key(folder / "keys", key)
    with Server(folder, folder / "models" / "random", *flags) as found:
        found.url, found.keys, found.folder = f"http://127.0.0.1:{found.port}", keys, folder
        yield found


@pytest.fixture
def spare(server):
    """A key of the test's own; `spare(scope)` makes one, and gives it that scope from now on."""
    name = "spare"
    key, text = make_key(name, "admin")
    path = server.folder / "keys"

    def become(scope):
        with contextlib.suppress(ValueError):
            remove_key(path, name)
        add_key(path, type(key)(name, scope, key.digest))
        while server.ask("GET", "/v1/models", headers={"X-API-Key": text})[0] != 200:  # it is read once a second
            time.sleep(0.4)
        return text

    yield become
    with contextlib.suppress(ValueError):
        remove_key(path, name)


@pytest.fixture
def context(browser):
    with contextlib.closing(browser.new_context(viewport={"width": 1280, "height": 900})) as found:
        found.set_default_timeout(WAIT_MS)
        yield found


def account(server):
    return [json.loads(line) for line in (server.folder / "audit").read_text().splitlines()]


def refused_pages(server):
    metrics = server.ask("GET", "/metrics", headers={"X-API-Key": server.keys["read"]})[1].decode()
    found = re.findall(r'(?m)^tapline_requests_refused_total\{reason="foreign_page"\} ([\d.]+)', metrics)
    return sum(map(float, found))


def sign_in(context, server, key, path="/models"):
    page = context.new_page()
    page.goto(server.url + path)
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(server.url + path)
    return page


def connected(page):
    page.wait_for_function("() => window.socket !== undefined && window.socket.connected")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page(browser, server, scheme, width):
    """No script, no error, nothing from elsewhere, the theme of the system, by keyboard alone."""
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "java_script_enabled": False}
    with contextlib.closing(browser.new_context(**options)) as context:
        page = context.new_page()
        problems = []
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: asked.url.startswith(server.url) or problems.append(asked.url))
        page.goto(server.url + "/flows?label=DNS")
        assert page.title() == "Sign in · tapline"
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(246, 247, 248)", "dark": "rgb(18, 23, 26)"}[scheme]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert problems == []
        page.keyboard.type("something wrong")
        page.keyboard.press("Enter")
        assert "opens nothing" in page.get_by_role("alert").inner_text()
        problems.clear()  # browsers call the 401 of this answer an error
        page.keyboard.type(server.keys["read"])
        page.keyboard.press("Enter")
        page.wait_for_url(server.url + "/flows?label=DNS")
        assert problems == []


def test_what_a_key_may_not_is_not_offered(context, server):
    page = connected(sign_in(context, server, server.keys["read"]))
    assert page.get_by_role("button", name="Load").count() == 0
    assert page.get_by_label("version").count() == 0
    page.get_by_text("want a key of the scope admin").wait_for()
    page.goto(server.url + "/captures")
    page.get_by_role("heading", name="Captures").first.wait_for()
    assert page.get_by_label("Choose captures").count() == 0
    page.get_by_text("wants a key of the scope classify").wait_for()
    page.set_viewport_size({"width": 400, "height": 800})
    page.get_by_role("button", name="Sign out").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    cookie = context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["name"]) == (True, "Strict", "tapline_session")


def test_a_capture_by_one_key_is_deleted_by_another_that_may(browser, server):
    with contextlib.ExitStack() as stack:
        contexts = [stack.enter_context(contextlib.closing(browser.new_context())) for _ in range(3)]
        page = connected(sign_in(contexts[0], server, server.keys["classify"], "/captures"))
        page.get_by_label("Choose captures").set_input_files(CAPTURE)
        page.get_by_role("link", name="android.pcap").first.click()
        page.get_by_role("button", name="Delete").first.wait_for()
        path = page.url.removeprefix(server.url)
        reader = connected(sign_in(contexts[1], server, server.keys["read"], path))
        reader.get_by_role("heading", name="android.pcap").wait_for()
        assert reader.get_by_role("button", name="Delete").count() == 0
        admin = connected(sign_in(contexts[2], server, server.keys["admin"], path))
        admin.get_by_role("button", name="Delete").first.click()
        admin.get_by_role("dialog").get_by_role("button", name="Delete").click()
        admin.wait_for_url(server.url + "/captures")
        job = path.partition("job=")[2]
        assert (account(server)[-1]["key"], account(server)[-1]["action"]) == ("admin", f"delete job {job}")


def test_what_is_pressed_counts_with_the_scope_of_now(context, server, spare):
    page = connected(sign_in(context, server, spare("admin")))
    page.locator("section", has_text="other").get_by_role("button", name="Load", exact=True).click()
    unload = page.get_by_role("button", name="Unload")
    unload.wait_for()
    connected(page)
    line = account(server)[-1]
    assert (line["key"], line["action"], line["outcome"]) == ("spare", "load model other 1", "done")
    spare("classify")  # which counts from the next look at the file on
    asked = "() => fetch('/v1/models/none/load', {method: 'POST'}).then((answer) => answer.status === 403)"
    server.wait(lambda: page.evaluate(asked))
    unload.click()
    page.get_by_text("Not done: that wants a key of the scope admin").wait_for()
    line = account(server)[-1]
    assert (line["key"], line["action"], line["outcome"]) == ("spare", "unload model other", "403 scope")
    serving = json.loads(server.ask("GET", "/v1/models", headers={"X-API-Key": server.keys["read"]})[1])["models"]
    assert {model["name"] for model in serving if model["version"]} >= {"other", "random"}


def test_a_page_of_a_revoked_key_is_cut_off(context, server, spare):
    """It goes to where one signs in by itself, and nothing that it showed stays."""
    page = connected(sign_in(context, server, spare("read"), "/health"))
    remove_key(server.folder / "keys", "spare")
    page.wait_for_url(server.url + "/sign-in?next=/health")
    assert "Live flows" not in page.locator("body").inner_text()
    line = account(server)[-1]
    assert (line["key"], line["action"], line["outcome"]) == ("spare", "end session", "key revoked")
    assert "removed=['spare']" in server.log


def test_to_see_to_an_alert_wants_more_than_reading(context, server, spare):
    """Neither a page nor the API lets a key that reads; one whose scope sinks is refused at the button, too."""
    path = next(server.folder.glob("**/history.db"))
    database = Database(f"sqlite:///{path}", path.parent)
    with database.engine.begin() as connection:
        write_batch(connection, database, [SeenAlert(time.time_ns() // 1000, ALERTS[0])], content=False)
    database.close()
    [alert] = json.loads(server.ask("GET", "/v1/alerts", headers={"X-API-Key": server.keys["read"]})[1])["alerts"]
    place, see = f"/v1/alerts/{alert['id']}/acknowledge", f"see to alert {alert['id']}"
    assert server.ask("POST", place, headers={"X-API-Key": server.keys["read"]})[0] == 403
    assert account(server)[-1]["outcome"] == "403 scope"
    key = spare("read")
    page = connected(sign_in(context, server, key, f"/alert?number={alert['number']}"))
    page.get_by_text("To say so wants a key of the scope classify.").wait_for()
    assert page.get_by_role("button", name="I have seen to it").count() == 0
    spare("classify")
    button = page.get_by_role("button", name="I have seen to it")
    server.wait(lambda: page.reload() and connected(page) and button.count())
    spare("read")  # which counts from the next look at the file on
    asked = "(place) => fetch(place, {method: 'POST'}).then((answer) => answer.status === 403)"
    server.wait(lambda: page.evaluate(asked, "/v1/alerts/none/acknowledge"))
    button.click()
    page.get_by_text("Not done: that wants a key of the scope classify").wait_for()
    line = account(server)[-1]
    assert (line["key"], line["action"], line["outcome"]) == ("spare", see, "403 scope")
    assert b'"acknowledged_us"' not in server.ask("GET", "/v1/alerts", headers={"X-API-Key": server.keys["read"]})[1]


def test_an_alert_names_who_has_seen_to_it(context, server, spare):
    """One on its page and, to others, in the list; who comes second is told of who was first."""
    path = next(server.folder.glob("**/history.db"))
    database = Database(f"sqlite:///{path}", path.parent)
    mine, other = (msgspec.structs.replace(ALERTS[0], id=name, message=name) for name in ("mine", "other"))
    with database.engine.begin() as connection:
        write_batch(
            connection, database, [SeenAlert(time.time_ns() // 1000, one) for one in (mine, other)], content=False
        )
    database.close()

    def alerts():
        found = json.loads(server.ask("GET", "/v1/alerts", headers={"X-API-Key": server.keys["read"]})[1])["alerts"]
        return {alert["id"]: alert for alert in found}

    page = connected(sign_in(context, server, spare("classify"), f"/alert?number={alerts()['mine']['number']}"))
    page.get_by_role("button", name="I have seen to it").click()
    page.get_by_text("Noted").wait_for()
    server.wait(lambda: alerts()["mine"].get("acknowledged_by") == "spare")
    page.reload()
    page.get_by_text(re.compile(r"^Seen to by spare, 20\d\d-")).wait_for()
    page.goto(f"{server.url}/alert?number={alerts()['other']['number']}")
    button = connected(page).get_by_role("button", name="I have seen to it")
    button.wait_for()
    place = "/v1/alerts/other/acknowledge"
    assert server.ask("POST", place, headers={"X-API-Key": server.keys["classify"]})[0] == 204
    server.wait(lambda: alerts()["other"].get("acknowledged_by") == "classify")
    button.click()
    page.get_by_text(re.compile(r"^Seen to by classify, 20\d\d-")).wait_for()
    page.goto(server.url + "/alerts?acknowledged=true")
    rows = page.locator("table tbody tr")
    rows.nth(1).wait_for()
    assert [re.search("seen to by \\w+", text)[0] for text in rows.all_inner_texts()] == [
        "seen to by classify", "seen to by spare",
    ]  # fmt: skip


def test_signing_out(context, server):
    page = connected(sign_in(context, server, server.keys["read"], "/health"))
    other = context.new_page()
    other.goto(server.url + "/models")
    connected(other)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(server.url + "/sign-in")
    other.wait_for_url(server.url + "/sign-in?next=/models")
    page.goto(server.url + "/models")
    page.wait_for_url(server.url + "/sign-in?next=/models")
    assert context.cookies() == []


def test_the_documentation_works_with_a_key(context, server):
    page = context.new_page()
    problems = []
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.goto(server.url + "/docs")
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").fill(server.keys["read"])
    page.locator("form", has=page.get_by_label("auth-bearer-value")).get_by_role(
        "button", name="Apply credentials"
    ).click()
    page.get_by_role("button", name="Close").last.click()
    page.locator("#operations-models-models_v1_models_get .opblock-summary-control").click()
    page.get_by_role("button", name="Try it out").click()
    with page.expect_response(server.url + "/v1/models") as answered:
        page.get_by_role("button", name="Execute").click()
    assert answered.value.status == 200
    assert answered.value.request.headers["authorization"] == f"Bearer {server.keys['read']}"
    page.locator(".live-responses-table").get_by_text('"random"').first.wait_for()
    assert problems == []
    page.goto(server.url + "/redoc")
    page.get_by_role("heading", name="tapline").first.wait_for()
    assert [said for said in problems if "cdn.redoc.ly/redoc/logo" not in said] == []  # which is not fetched
    assert all("has been blocked" in said for said in problems)


FOREIGN = """<!doctype html><title>foreign</title><form id=form method=post enctype=text/plain action="URL/v1/jobs">
<input name=a value=b></form><script>
async function attack() {
  const seen = [];
  for (const path of ['/v1/models/other/unload', '/v1/models/other/load', '/v1/jobs', '/v1/classify/pcap'])
    for (const options of [{}, {mode: 'no-cors'}, {credentials: 'include'}, {mode: 'no-cors', credentials: 'include'}])
      try {
        const answer = await fetch('URL' + path, {method: 'POST', body: 'x', ...options});
        seen.push(answer.type + answer.status);
      } catch { seen.push('refused'); }
  await new Promise((done) => {
    const socket = new WebSocket('URL'.replace('http', 'ws') + '/_nicegui_ws/socket.io/?EIO=4&transport=websocket');
    socket.onopen = () => { seen.push('open'); done(); };
    socket.onerror = () => { seen.push('closed'); done(); };
  });
  return seen;
}
</script>"""


@pytest.fixture
def foreign(server):
    """A web page of another origin: another port, and so the same site, where cookies are least guarded."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = FOREIGN.replace("URL", server.url).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}/"
        found.shutdown()
        thread.join()


def test_a_page_of_another_origin_gets_nothing_done(context, server, foreign):
    connected(sign_in(context, server, server.keys["admin"])).goto("about:blank")
    before, refused = account(server), refused_pages(server)
    page = context.new_page()
    page.goto(foreign)
    seen = page.evaluate("attack()")
    assert len(seen) == 17
    assert set(seen) <= {"refused", "opaque0", "closed"}  # it reads nothing either
    page.evaluate("document.getElementById('form').submit()")
    page.get_by_text("foreign_page").wait_for()
    assert refused_pages(server) >= refused + 18
    assert account(server) == before
    jobs = json.loads(server.ask("GET", "/v1/jobs", headers={"X-API-Key": server.keys["read"]})[1])["jobs"]
    assert [job for job in jobs if job["size_bytes"] <= 10] == []
