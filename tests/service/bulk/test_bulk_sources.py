"""What a source of a bulk run may be, and what is said of one that is none."""

import os
import shutil

import pytest

from tests.paths import DATA

fsspec = pytest.importorskip("fsspec")

from tapline.service.bulk.bulk_sources import find_captures, open_capture  # noqa: E402
from tapline.service.sources.capture import CaptureError, ReadOptions, read_capture  # noqa: E402

ANDROID = DATA / "captures" / "android.pcap"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """`a.pcap`, `day/b.pcapng` and a text, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day").mkdir()
    shutil.copy(ANDROID, "a.pcap")
    shutil.copy(DATA / "captures" / "telegram_videocall.pcapng", "day/b.pcapng")
    (tmp_path / "day" / "notes.txt").write_text("notes")
    return tmp_path


@pytest.fixture
def memory():
    """fsspec's filesystem in memory, empty before and after."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    yield found
    found.store.clear()


def names(*sources):
    return [capture.name for capture in find_captures(sources)]


def test_files_directories_and_patterns_each_once(archive):
    assert names("a.pcap", ".", "**/*.pcapng", f"file://{archive}/a.pcap") == ["a.pcap", "day/b.pcapng"]
    first, second = find_captures([".", "day"])
    assert (first.path, second.path) == (f"{archive}/a.pcap", f"{archive}/day/b.pcapng")
    assert first.size_bytes == ANDROID.stat().st_size
    assert first.key.startswith("a.pcap-")
    assert len({first.key, second.key}) == 2


def test_a_capture_that_changed_is_seen_to(archive):
    (before,) = find_captures(["a.pcap"])
    assert find_captures(["a.pcap"]) == [before]
    os.utime("a.pcap", (1, 2))
    (after,) = find_captures(["a.pcap"])
    assert after != before
    assert after.key == before.key


def test_urls(memory):
    for name in ("/day/a.pcap", "/day/deep/b.pcap.gz", "/day/notes.txt"):
        memory.pipe_file(name, ANDROID.read_bytes())
    assert names("memory://day") == ["memory:///day/a.pcap", "memory:///day/deep/b.pcap.gz"]
    assert names("memory://day/*.pcap") == names("memory://day/a.pcap") == ["memory:///day/a.pcap"]
    (capture,) = find_captures(["memory://day/a.pcap"])
    assert capture.size_bytes == ANDROID.stat().st_size
    source, stream = open_capture(capture.path, "auto", ReadOptions())
    with stream:
        assert list(source) == list(read_capture(ANDROID))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing.pcap", "nothing.pcap: cannot read it: No such file"),
        ("*.cap", r"\*\.cap: no capture there"),
        ("empty", "empty: no capture in this directory"),
        ("memory://nothing.pcap", "memory://nothing.pcap: cannot read it: FileNotFoundError"),
        ("nonsense://x", "nonsense://x: .*nonsense"),
        ("sftp://me:secret@host/x", "sftp://…: a password in the URL"),
        ("zip://a.pcap::s3://me:secret@host/x.zip", "zip://…: a password in the URL"),
        ("https://host/a.pcap?X-Amz-Expires=9&X-Amz-Signature=secret", "https://…: a signature in the URL"),
        ("https://host/a.pcap?sv=1&sig=secret", "https://…: a signature in the URL"),
        ("-", "standard input is no archive"),
    ],
)
def test_what_names_nothing_is_told(archive, memory, source, said):
    (archive / "empty").mkdir()
    with pytest.raises(CaptureError, match=said) as error:
        find_captures(["a.pcap", source])
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
