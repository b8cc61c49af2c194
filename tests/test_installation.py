"""What is said of how to add an extra, by where this tapline came from."""

import json
from importlib.metadata import PackageNotFoundError

import pytest

from tapline import installation

URL = "https://example.org/tapline"


class Installed:
    version = "1.2.3"

    def __init__(self, origin):
        self._origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self._origin is None else json.dumps(self._origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'tapline-traffic[cpu]==1.2.3'"),
        ({"url": "file:///opt/my%20tap", "dir_info": {"editable": True}}, "pip install -e '/opt/my tap[cpu]'"),
        ({"url": "file:///opt/tap", "dir_info": {}}, "pip install '/opt/tap[cpu]'"),
        ({"url": f"{URL}.whl", "archive_info": {}}, f"pip install 'tapline-traffic[cpu] @ {URL}.whl'"),
        (
            {"url": URL, "vcs_info": {"vcs": "git", "commit_id": "0a1b", "requested_revision": "v1"}},
            f"pip install 'tapline-traffic[cpu] @ git+{URL}@0a1b'",
        ),
    ],
    ids=["index", "editable", "folder", "file", "git"],
)
def test_an_extra_is_added_from_where_tapline_came(monkeypatch, origin, command):
    monkeypatch.setattr(installation, "distribution", lambda name: Installed(origin))
    assert installation.install_command("cpu") == command
    assert installation.version() == "1.2.3"


def test_code_that_was_never_installed_says_so(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "distribution", missing)
    assert installation.version() == "unknown"
    assert installation.install_command("train") == "pip install '.[train]' in a checkout"
