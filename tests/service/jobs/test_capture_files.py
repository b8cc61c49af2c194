"""Captures below a directory: what lies there, and nothing else, however it is named."""

import os

import pytest

from tapline.service.jobs.capture_files import BadPathError, captures_below, open_below

PLAIN = b"below"


@pytest.fixture
def directory(tmp_path):
    below = tmp_path / "captures"
    (below / "day" / "night").mkdir(parents=True)
    (below / "day" / "a.pcap").write_bytes(PLAIN)
    (below / ".hidden").write_bytes(b"hidden")
    (tmp_path / "outside.pcap").write_bytes(b"outside")
    (below / "link.pcap").symlink_to(tmp_path / "outside.pcap")
    (below / "inner.pcap").symlink_to(below / "day" / "a.pcap")
    (below / "out").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(below / "pipe")
    return below


@pytest.mark.parametrize("path", ["day/a.pcap", "./day/a.pcap", "day//a.pcap", "day/./a.pcap"])
def test_what_lies_below_is_opened(directory, path):
    with open_below(directory, path) as file:
        assert file.read() == PLAIN


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "/", "..", "../outside.pcap", "day/../../outside.pcap", "day/../day/a.pcap", "link.pcap", "inner.pcap",
        "out/outside.pcap", "out", "pipe", "day", "none.pcap", "day/a.pcap/x", "a\0b", "\ud800", "x" * 2000,
        "a/" * 40 + "b", "/etc/passwd", "//etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_is(directory, path):
    with pytest.raises(BadPathError):
        open_below(directory, path)


def test_nothing_is_where_no_directory_is_named():
    with pytest.raises(BadPathError, match="--captures-dir"):
        open_below(None, "a.pcap")


def test_the_list_has_what_can_be_opened(directory):
    assert captures_below(directory) == ["day/a.pcap"]
    assert captures_below(None) == []
