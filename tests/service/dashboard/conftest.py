import shutil

import pytest
from playwright.sync_api import sync_playwright

from tapline.service.inference.repository import shipped_checkpoint
from tests.paths import DATA
from tests.service.api.served import Server

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; tests that need one skip where there is none."""
    if BROWSER is None:
        pytest.skip("no Chromium here: install Debian's package `chromium`")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The service as `make run` starts it, once the bundled capture has been played."""
    folder = tmp_path_factory.mktemp("dashboard")
    flags = [
        "--replay",
        DATA / "captures" / "android.pcap",
        "--speed",
        "0",
        "--history-content",
        "--data-dir",
        folder / "data",
    ]
    with Server(folder, shipped_checkpoint("flow-protocols"), *flags) as found:
        found.wait(lambda: "replay finished" in found.log)
        found.wait(lambda: b'"flows":[]' not in found.ask("GET", "/v1/flows")[1])
        found.folder = folder
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


class Visit:
    """A page of a browser, and what went wrong on it."""

    def __init__(self, browser, server, scheme="light", width=1280):
        self._context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, accept_downloads=True
        )
        self.page = self._context.new_page()
        self.url = server.url
        self.problems = []
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._asked)

    def _asked(self, request):
        if not request.url.startswith((self.url, self.url.replace("http", "ws"), "data:", "blob:")):
            self.problems.append(f"a request elsewhere: {request.url}")

    def open(self, path):
        """A page, once its connection stands."""
        self.page.goto(self.url + path)
        self.page.wait_for_function("() => window.socket === undefined || window.socket.connected")
        return self.page

    def close(self):
        self._context.close()


@pytest.fixture
def visit(browser, server):
    """Opens pages; nothing may have gone wrong on them in the end."""
    found = []

    def begin(**options):
        found.append(Visit(browser, server, **options))
        return found[-1]

    yield begin
    for each in found:
        each.close()
        assert each.problems == []
