"""The file `tapline.toml`: where it is looked for, how it is read, and on which line a setting stands in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tapline.service.configuration.problems import ConfigurationError, unknown
from tapline.service.toml_lines import TomlError, TomlLines, read_toml

FILE_NAME = "tapline.toml"
NO_FILE = "none"
MAX_BYTES = 256 << 10


@dataclass(frozen=True)
class ConfigFile:
    """What a file holds: values by the names of settings, and the lines where they stand.

    `others_read`: everybody on this machine may read it. `problems`: sentences about names that are none, whose values
    are not among the others.
    """

    path: Path
    values: Mapping[str, object]
    lines: Mapping[str, int]
    others_read: bool = False
    problems: tuple[str, ...] = ()

    def where(self, name: str) -> str:
        """`/etc/tapline/tapline.toml:3`, the place of a setting."""
        return f"{self.path}:{self.lines[name]}"


def default_places() -> list[Path]:
    """Where the file is looked for; the first that is there is read, and no other. Never the current directory: whose
    that is may be anybody."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        home = Path(base) if base.startswith("/") else Path("~/.config").expanduser()
    except RuntimeError:  # this user has no home
        return [Path("/etc/tapline") / FILE_NAME]
    return [home / "tapline" / FILE_NAME, Path("/etc/tapline") / FILE_NAME]


def find_file(given: str | None) -> Path | None:
    """The file that was `given`, or the first of the default places that is there; None for `none`, and for neither."""
    if given is not None:
        return None if given == NO_FILE else Path(given)
    return next((place for place in default_places() if _is_there(place)), None)


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:  # in a directory that this user may not look into
        return False


def read_file(path: Path, names: Collection[str]) -> ConfigFile:
    """Read a file, in which only settings of these names may stand; others are among its `problems`.

    Raises:
        ConfigurationError: it cannot be read, is no TOML, or everybody may write it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot read it: {error.strerror}"]) from None
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise ConfigurationError([f"{path}: everybody may write it, and with it say what runs here: chmod o-w {path}"])
    if len(content) > MAX_BYTES:
        raise ConfigurationError([f"{path}: expected at most {MAX_BYTES >> 10} KiB of settings, it is larger"])
    values, text = _parsed(path, content)
    lines = TomlLines(text)
    numbers = {name: lines.line((name,)) for name in values}
    wrong = [name for name in values if name not in names or _is_table(values[name])]
    wrong.sort(key=numbers.__getitem__)
    problems = tuple(f"{path}:{numbers[name]}: {_wrong(name, values[name], names)}" for name in wrong)
    known = {name: value for name, value in values.items() if name not in wrong}
    return ConfigFile(path, known, numbers, stat.S_ISREG(mode) and bool(mode & stat.S_IROTH), problems)


def _parsed(path: Path, content: bytes) -> tuple[dict[str, object], str]:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        return read_toml(text), text
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError([f"{path}:{line}: expected text in UTF-8"]) from None
    except TomlError as error:
        raise ConfigurationError([f"{path}:{error.line}: this is no TOML: {error}{_hint(error)}"]) from None


def _hint(error: TomlError) -> str:
    return "" if "twice" in str(error) else ': write name = 8000, true, "text" or ["a", "b"]'


def _wrong(name: str, value: object, names: Collection[str]) -> str:
    if _is_table(value) and name in names:
        return f"{name}: expected a value, got a table"
    if _is_table(value):
        return f"[{name}]: settings stand in no table: take its line out"
    return unknown(name, names)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
