"""The pages in a real browser: what a person sees and does, and that nothing comes from elsewhere."""

import json
import re
import time

import pytest

from tapline.service.history.batch_writing import SeenAlert, write_batch
from tapline.service.history.database import Database
from tests.paths import DATA
from tests.service.history.test_alerts import ALERTS

pytestmark = [pytest.mark.whole, pytest.mark.slow]

CAPTURE = DATA / "captures" / "android.pcap"
PAGES = [
    "/",
    "/alerts",
    "/alert?number=1",
    "/flows",
    "/hosts",
    "/captures",
    "/models",
    "/health",
    "/card?model=intrusion",
]
NARROW = 400


def records(server, what):
    return json.loads(server.ask("GET", f"/v1/{what}")[1])[what]


def all_paths(server):
    flow = records(server, "flows")[0]
    trace = records(server, "traces")[0]
    return [
        *PAGES, f"/flow?number={flow['number']}", f"/trace?number={trace['number']}", f"/host?host={flow['orig_h']}",
    ]  # fmt: skip


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", NARROW)])
def test_every_page(visit, server, scheme, width):
    """No error, no request elsewhere, nothing wider than the window, one heading, and the theme of the system."""
    seen = visit(scheme=scheme, width=width)
    for path in all_paths(server):
        page = seen.open(path)
        page.get_by_role("heading", level=1).first.wait_for()
        page.wait_for_timeout(300)  # what comes by the connection
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate("document.body.classList.contains('body--dark')") == (scheme == "dark"), path
        assert page.get_by_role("main").count() == 1, path
        last = page.get_by_label("Pages").get_by_role("link").last.bounding_box()
        assert last["x"] + last["width"] <= width, path  # no page is out of sight


def test_alerts_are_shown_as_they_come_and_seen_to(visit, server):
    """Alerts of the running service: their list, one of them, and what nobody has seen to."""
    path = next(server.folder.glob("data/history.db"))
    page = visit().open("/alerts")
    assert "start with --alerts" in page.locator("body").inner_text()
    database = Database(f"sqlite:///{path}", path.parent)
    with database.engine.begin() as connection:
        write_batch(connection, database, [SeenAlert(time.time_ns() // 1000, one) for one in ALERTS], content=False)
    database.close()
    page.locator("table tbody tr").nth(len(ALERTS) - 1).wait_for()  # without a reload
    page = visit(width=NARROW).open("/alerts")
    cells = page.locator("table tbody tr").first.locator("td")
    cells.nth(4).wait_for()
    boxes = [cells.nth(number).bounding_box() for number in range(5)]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= NARROW for box in boxes)
    assert boxes[1]["y"] < boxes[2]["y"] < boxes[3]["y"] < boxes[4]["y"]  # what, about and rule below each other
    page = visit().open("/alerts?severity=high&acknowledged=false")
    rows = page.locator("table tbody tr")
    rows.nth(1).wait_for()
    assert [text.split("\t")[1].strip() for text in rows.all_inner_texts()] == ["critical", "high"]
    rows.first.get_by_role("link").first.click()
    page.get_by_role("heading", level=1).wait_for()
    assert "trickbot" in page.locator("table").inner_text()
    page.get_by_role("button", name="I have seen to it").click()
    page.get_by_text("Noted").wait_for()
    server.wait(lambda: b'"acknowledged_us"' in server.ask("GET", "/v1/alerts?acknowledged=true")[1])
    assert b'"acknowledged_by":"-"' in server.ask("GET", "/v1/alerts?acknowledged=true")[1]
    page.reload()
    page.get_by_text(re.compile(r"^Seen to, 20\d\d-")).wait_for()  # where no key is wanted, nobody has a name
    page = visit().open("/")
    page.locator(".figure", has_text="alerts").get_by_text("4", exact=True).wait_for()
    assert "expected a time" in visit().open("/alerts?since_us=x").get_by_role("alert").inner_text()


def test_a_view_is_in_its_link(visit, server):
    seen = visit()
    page = seen.open("/flows")
    page.get_by_label("label", exact=True).fill("DNS")
    page.get_by_label("server's port").fill("53")
    page.get_by_label("server's port").press("Enter")
    page.wait_for_url(re.compile(r"label=DNS"))
    rows = page.locator("table tbody tr")
    rows.first.wait_for()
    labels = set(page.locator("table tbody tr td:nth-child(2)").all_inner_texts())
    assert labels == {"DNS"}
    again = visit().open(page.url.removeprefix(server.url))
    assert again.locator("table tbody tr").all_inner_texts() == rows.all_inner_texts()


@pytest.mark.parametrize(
    ("query", "said"),
    [("port=x", "port"), ("since_us=yesterday", "expected a time"), ("host=nobody", "expected an address"),
     ("cursor=%00", "cursor"), ("min_confidence=7", "min_confidence")],
)  # fmt: skip
def test_a_view_that_cannot_be_is_told(visit, query, said):
    page = visit().open(f"/flows?{query}")
    assert said in page.get_by_role("alert").inner_text()


def test_hosts_are_sorted_and_a_period_of_ones_own_is_kept(visit, server):
    seen = visit()
    for sort, column in (("bytes", 4), ("last seen", 8), ("nonsense", 2)):
        page = seen.open(f"/hosts?since_us=3h&sort={sort}&page=x")
        cells = page.locator("section", has_text="Hosts that began flows").locator(f"tbody tr td:nth-child({column})")
        cells.first.wait_for()
        if sort != "bytes":
            found = cells.all_inner_texts()
            assert len(found) > 5
            assert found == sorted(found, key=lambda text: int(text) if text.isdigit() else text, reverse=True)
    assert page.get_by_label("seen in the").input_value() in ("3h", "")
    assert "none" in seen.open("/hosts?page=999").locator("section", has_text="Hosts that began").inner_text()


@pytest.mark.parametrize("path", ["/flow?number=99999999", "/flow?number=x", "/trace?number=99999999", "/flow"])
def test_what_is_not_there_is_told(visit, path):
    assert "There is no such" in visit().open(path).get_by_role("main").inner_text()


def test_from_the_first_page_to_what_the_model_looked_at(visit, server):
    page = visit().open("/")
    page.locator("table tbody tr a").first.click()
    page.get_by_role("heading", name="First bytes").wait_for()
    assert page.locator(".hex").count() >= 1
    page.get_by_role("button", name="Ask the model again, in part").click()
    page.get_by_text("all of it, without the port").wait_for()


def test_by_keyboard(visit, server):
    """The first stop leads past the navigation; fields and links can be reached and used."""
    page = visit().open("/flows")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "Skip to the content"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Live"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Live").wait_for()


def test_a_theme_is_kept(visit, server):
    seen = visit(scheme="light")
    page = seen.open("/health")
    for _ in range(2):  # from the system's to light, to dark
        page.get_by_role("button", name=re.compile("^Theme")).click()
        page.wait_for_load_state()
        page.get_by_role("heading", level=1).wait_for()
        page.wait_for_timeout(300)
    page = seen.open("/models")
    assert page.evaluate("document.body.classList.contains('body--dark')")


def test_foreign_text_is_text(visit, server):
    """What an address asks for is shown, never run."""
    text = "<img src=x onerror=alert(1)>"
    page = visit().open(f"/host?host={text}")
    assert page.locator("img[src=x]").count() == 0
    assert text in page.get_by_role("heading", level=1).inner_text()


def test_a_capture_from_drop_to_packets(visit, server, tmp_path):
    page = visit().open("/captures")
    page.get_by_label("Choose captures").set_input_files(CAPTURE)
    page.get_by_role("link", name="android.pcap").first.click()
    page.get_by_role("heading", name="Labels").wait_for()
    page.get_by_role("link", name="Flows", exact=True).last.click()
    page.locator("table tbody tr a").first.wait_for()
    page.locator("table tbody tr a").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Its packets, to open in Wireshark").click()
    packets = download.value.path().read_bytes()
    assert packets[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1")
    [job] = [job for job in records(server, "jobs") if job["name"] == "android.pcap"]
    status, report = server.ask("GET", f"/v1/jobs/{job['id']}/report")
    assert status == 200
    assert b"android.pcap" in report
    assert b"<script" not in report


def test_what_is_no_capture_is_told(visit, server, tmp_path):
    text = tmp_path / "notes.pcap"
    text.write_text("no capture")
    page = visit().open("/captures")
    page.get_by_label("Choose captures").set_input_files(text)
    page.get_by_text("failed: ").first.wait_for()
    failed = [job for job in records(server, "jobs") if job["name"] == "notes.pcap"]
    assert [job["state"] for job in failed] == ["failed"]
    assert failed[0]["error"] in page.get_by_role("main").inner_text()


def test_a_model_is_unloaded_and_loaded(visit, server):
    page = visit().open("/models")
    page.get_by_role("button", name="Unload").first.click()
    page.get_by_text("not loaded").wait_for()
    gone = [model["name"] for model in records(server, "models") if model["version"] is None]
    assert gone == ["intrusion"]
    page.locator("section", has_text="not loaded").get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("not loaded").wait_for(state="detached")
    assert all(model["version"] is not None for model in records(server, "models"))


def test_pages_of_others_get_nothing(server):
    for path in ("/", "/flows", "/_nicegui/3/nope"):
        assert server.ask("GET", path, headers={"Origin": "http://elsewhere.example"})[0] == 403
        assert server.ask("GET", path, headers={"Host": "elsewhere.example"})[0] == 421
    status, body = server.ask("GET", "/v1/nothing")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
    upgrade = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": "http://elsewhere.example",
    }  # fmt: skip
    assert server.ask("GET", "/_nicegui_ws/socket.io/?EIO=4&transport=websocket", headers=upgrade)[0] == 403
