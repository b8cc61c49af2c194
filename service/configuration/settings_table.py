"""The table of settings for people: as a commented `tapline.toml`, and as the table of docs/configuration.md, which
`python -m tapline.service.configuration.settings_table docs/configuration.md` writes anew."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tapline.service.settings import Settings, default_data_dir, is_list

WIDTH = 80
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"

_HEAD = """\
Settings of tapline. As it stands every line is a comment, and nothing differs from the defaults: take the # away where
a line begins with a name, and say what you want. Where no default is shown, nothing is set. Flags count before
variables of the environment, and these before this file. `tapline check-config` says what comes of it.
"""


def example() -> str:
    """A commented file with every setting and its default, in the order of the table."""
    parts = [_comment(_HEAD)]
    for name, field in Settings.model_fields.items():
        default = default_of(field)
        value = '""' if default is None else _toml(default)
        parts.append(f"{_comment(f'{field.description} [{expected(field)}]')}\n#{name} = {value}")
    return "\n\n".join(parts) + "\n"


def markdown() -> str:
    """Every setting in a table: name, default, what is expected, what it is."""
    rows = ["| setting | default | expected | what it is |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = default_of(field)
        shown = "" if default in (None, []) else f"`{_toml(default)}`"
        rows.append(f"| `{name}` | {shown} | {_cell(expected(field))} | {_cell(field.description or '')} |")
    return "\n".join(rows) + "\n"


def default_of(field: FieldInfo) -> object:
    """The default, in a home written as `~`, so that it is the same whoever asks; None where there is none."""
    if field.default_factory is not None:
        return str(homely(default_data_dir()))
    default: object = field.default
    return default


def homely(value: object) -> object:
    """A default as it is shown: the same whoever reads it."""
    try:
        home = Path.home()
    except RuntimeError:  # this user has none
        return value
    return f"~/{value.relative_to(home)}" if isinstance(value, Path) and value.is_relative_to(home) else value


def expected(field: FieldInfo) -> str:
    """What a setting takes, in few words: `1 to 64`, `on or off`, `path`."""
    if is_list(field):
        return "list of texts"
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    if get_origin(field.annotation) is Literal:
        return f"{', '.join(map(str, kinds[:-1]))} or {kinds[-1]}"
    if kinds[0] in (int, float):
        return _range(field, "whole number" if kinds[0] is int else "number")
    return {bool: "true or false", Path: "path", SecretStr: "text, secret"}.get(kinds[0], "text")


def _range(field: FieldInfo, what: str) -> str:
    least: list[Any] = [bound.ge for bound in field.metadata if isinstance(bound, Ge)]
    above: list[Any] = [bound.gt for bound in field.metadata if isinstance(bound, Gt)]
    most: list[Any] = [bound.le for bound in field.metadata if isinstance(bound, Le)]
    start = f"{least[0]:,}" if least else f"above {above[0]:,}" if above else ""
    if most:
        return f"{start}{',' if above else ''} to {most[0]:,}".strip()
    return f"{what}, {start}{' or more' if least else ''}" if start else what


def _toml(value: object) -> str:
    """A value as TOML writes it; of texts, JSON's form is one of TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_table(page: str) -> str:
    """A page with the table of settings as it is now in the place of the one between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{markdown()}{END}{after}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(with_table(Path(name).read_text()))
