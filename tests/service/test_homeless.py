"""A user without a home, as systemd and containers make them, has places for data and settings all the same."""

import os
from pathlib import Path

import pytest

from tapline.service.settings import default_data_dir

NOBODY = 54_321


@pytest.fixture
def homeless(monkeypatch):
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)


@pytest.mark.usefixtures("homeless")
def test_data_of_a_user_without_a_home_has_a_place():
    with pytest.raises(RuntimeError):
        Path("~").expanduser()
    assert default_data_dir() == Path("/var/lib/tapline")


def test_a_home_counts_where_there_is_one(monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/a")
    assert default_data_dir() == Path("/home/a/.local/share/tapline")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_dir() == Path("/data/tapline")
