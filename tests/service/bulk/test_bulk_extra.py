"""What the base install says of bulk runs, and what a person sees of one."""

import io
import subprocess
import sys

import pytest

from tapline.service.command.bulk_progress import BulkProgress
from tapline.service.command.console import make_console
from tests.paths import ROOT
from tests.service.command.cli_runner import CODE


@pytest.mark.parametrize("package", ["ray", "fsspec", "pyarrow"])
def test_without_the_extra_one_sentence_says_what_to_install(package, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None; {CODE}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "bulk", "a.pcap", "--out", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("bulk runs need Ray, of the extra `bulk`: pip install ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


class Terminal(io.StringIO):
    """A terminal, as far as anybody asks."""

    encoding = "utf-8"

    def isatty(self):
        return True


def shown(file):
    """What stands in a file after a capture that is done and one that failed, and the sum of all."""
    from tapline.service.bulk import bulk_records as records

    captures = [records.BulkCapture(f"/archive/{name}", name, 3_000_000, "1") for name in "abc"]
    accounts = [
        records.CaptureAccount(
            capture=each.path, key=each.key, size_bytes=each.size_bytes, changed="1", run="one", tries=1, **what
        )
        for each, what in zip(captures[1:], ({"classified": 7, "traces": 2}, {"error": "no capture"}), strict=True)
    ]
    progress = BulkProgress(make_console(file, width=100), captures, captures[1:])
    progress._last_line -= 100  # as if the last line were long ago
    with progress:
        for account in accounts:
            progress.add(account)
    return file.getvalue(), progress.total_text(accounts)


def test_lines_where_there_is_no_terminal():
    said, total = shown(io.StringIO())
    first, second = said.splitlines()
    assert first.startswith("2/3 captures, 7 flows, ")
    assert first.endswith(" MB/s, 0 failed")
    assert second == "/archive/c: no capture"
    assert total.startswith("2 of 3 captures done (1 of them before), 1 failed, 7 flows, 2 traces, ")


def test_one_line_that_changes_on_a_terminal():
    said, _ = shown(Terminal())
    assert "/archive/c: no capture" in said
    assert "2/3 captures, 7 flows" in said
    assert "\x1b[2K" in said  # it is written over
