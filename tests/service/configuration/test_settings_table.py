"""The commented file and the table of the docs say of every setting what it is, and are the table of settings."""

import re
import tomllib
from pathlib import Path

from tapline.service.configuration.configuration import Configuration
from tapline.service.configuration.settings_table import (
    WIDTH,
    default_of,
    example,
    expected,
    homely,
    markdown,
    with_table,
)
from tapline.service.settings import Settings, default_data_dir
from tests.paths import ROOT
from tests.service.command.cli_runner import tapline


def uncommented(text):
    return re.sub(r"(?m)^#(?=\w)", "", text)


def test_the_example_loads_and_is_the_defaults(tmp_path, monkeypatch):
    printed = tapline("config", "example")
    assert (printed.returncode, printed.stderr) == (0, "")
    path = tmp_path / "tapline.toml"
    path.write_text(printed.stdout)
    assert Configuration({}, str(path)).file.values == {}

    monkeypatch.delenv("TAPLINE_HISTORY", raising=False)
    given = [line for line in uncommented(printed.stdout).splitlines() if not line.endswith(' = ""')]
    path.write_text("\n".join(given))
    found = Configuration({}, str(path))
    assert found.settings().model_copy(update={"data_dir": None}) == Settings().model_copy(update={"data_dir": None})
    without = {name for name, field in Settings.model_fields.items() if default_of(field) is None}
    assert set(found.file.values) == set(Settings.model_fields) - without
    assert all(found.origin(name).where.startswith(f"{path}:") for name in found.file.values)


def test_what_has_no_default_is_shown_empty_and_refused_so(tmp_path):
    values = tomllib.loads(uncommented(example()))
    empty = [name for name, value in values.items() if value == ""]
    assert "api_key" in empty
    path = tmp_path / "tapline.toml"
    path.write_text(uncommented(example()))
    path.chmod(0o600)
    said = tapline("check-config", "--config", path)
    assert said.returncode == 2
    assert [f": {name} is empty:" in said.stderr for name in empty] == [True] * len(empty)


def test_the_example_fits_a_terminal():
    assert max(map(len, example().splitlines())) <= WIDTH


def test_what_is_expected_is_said():
    fields = Settings.model_fields
    names = ("dashboard", "port", "history_days", "speed", "api_key", "zeek", "data_dir", "host", "allow_remote")
    assert [expected(fields[name]) for name in names] == [
        "on or off", "0 to 65,535", "above 0, to 36,500", "number, 0 or more", "text, secret", "list of texts", "path",
        "text", "true or false",
    ]  # fmt: skip


def test_the_page_has_the_table_as_it_is(monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME")
    page = (ROOT / "docs/configuration.md").read_text()
    assert page == with_table(page), (
        "write it anew: python -m tapline.service.configuration.settings_table docs/configuration.md"
    )
    assert markdown().count("\n") == len(Settings.model_fields) + 2


def test_who_has_no_home_runs_all_the_same(monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME")

    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_data_dir() == Path("/var/lib/tapline") == homely(default_data_dir())
    assert '#data_dir = "/var/lib/tapline"' in example()
