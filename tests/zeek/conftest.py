"""Shared by the tests with a real Zeek."""

import shutil

import pytest

from tests.zeek.zkg import install


@pytest.fixture(scope="session")
def with_plugin(tmp_path_factory):
    """The environment of a Zeek with what zkg built: the plugin is compiled once."""
    if shutil.which("zkg") is None:
        pytest.skip("no zkg on PATH")
    return install(tmp_path_factory.mktemp("with-plugin"))
