"""An archive to classify, and what Python says of it."""

import shutil
import subprocess
import sys

import pytest

import tapline
from tests.paths import DATA, ROOT


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Two small captures, one that takes seconds, and one that is none."""
    folder = tmp_path_factory.mktemp("archive")
    shutil.copy(DATA / "captures" / "android.pcap", folder)
    shutil.copy(DATA / "captures" / "telegram_videocall.pcapng", folder)
    (folder / "bad.pcap").write_bytes(b"none at all")
    made = folder / "large.pcap"
    command = [sys.executable, ROOT / "benchmarks" / "make_capture.py", DATA / "captures", "--out", made]
    subprocess.run([*map(str, command), "--megabytes", "30"], check=True, timeout=120, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def expected(archive):
    """The flows that Python gives of the archive, by capture."""
    found = {}
    for path in sorted(archive.iterdir()):
        if path.name != "bad.pcap":
            found[path.name] = tapline.classify(path, traces=(), threads=1).to_arrow()
    return found
