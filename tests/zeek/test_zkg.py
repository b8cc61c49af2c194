"""What `zkg install` leaves serves the bus: with the plugin where it can be built, with the scripts alone where not."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.zeek.test_loading import check, documented
from tests.zeek.zkg import COMPILERS, install, path_without

pytestmark = [
    pytest.mark.zeek,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
    pytest.mark.skipif(shutil.which("zkg") is None, reason="no zkg on PATH"),
]
NATIVE = "Tapline::Native"


def serves_by_zkg(line, folder, environment):
    """Run a documented command in `folder` with what zkg installed, and wait until it serves."""
    Path(folder / "local.zeek").write_text("@load tapline\n")
    check(documented(line), folder, environment)


def plugins(environment):
    """What Zeek says of its plugins."""
    return subprocess.run(["zeek", "-N", NATIVE], env=environment, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize(
    "line", ["zeek -i eth0 local.zeek", "zeek -i eth0 -O ZAM --optimize-files=/tapline/ local.zeek"]
)
def test_with_the_plugin(line, with_plugin, tmp_path):
    assert NATIVE in plugins(with_plugin)
    serves_by_zkg(line, tmp_path, with_plugin)


@pytest.mark.parametrize("name", ["tapline", "a-copy-of-it"])
@pytest.mark.parametrize("missing", [("cmake",), COMPILERS], ids=["no CMake", "no compiler"])
def test_without_what_it_takes_to_build_the_plugin(name, missing, tmp_path):
    environment = install(tmp_path, name, path_without(missing, tmp_path / "programs"))
    (log,) = (tmp_path / "zkg" / "state_dir").rglob("*build.log")
    assert "Tapline's plugin is not built" in log.read_text()
    assert NATIVE not in plugins(environment)
    serves_by_zkg("zeek -i eth0 local.zeek", tmp_path, environment)
