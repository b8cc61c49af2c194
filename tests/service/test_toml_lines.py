"""Lines of values in TOML, however they are written."""

import tomllib

import pytest

from tapline.service.toml_lines import TomlLines

TEXT = '''\
# a comment with [brackets]
title = "x"

[list.own]
of = "networks"
entries = [
  "1", # ]
  {value = "2"}, "3",

  [
    "4" ]]

[[rule]]
name = """
[[rule]]
name = "no"
"""
suppress.by = ["q"]
[rule.rate]
count = 3
[[rule]]
"a b" = 'c'
rate = {count = 1}
[[rule.part]]
[[rule.part]]
x = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("list", "own"), 4),
        (("list", "own", "of"), 5),
        (("list", "own", "entries"), 6),
        (("list", "own", "entries", 0), 7),
        (("list", "own", "entries", 1, "value"), 8),
        (("list", "own", "entries", 2), 8),
        (("list", "own", "entries", 3), 11),
        (("rule", 0), 13),
        (("rule", 0, "name"), 14),
        (("rule", 0, "suppress", "by", 0), 18),
        (("rule", 0, "rate", "count"), 20),
        (("rule", 1), 21),
        (("rule", 1, "a b"), 22),
        (("rule", 1, "rate", "count"), 23),
        (("rule", 1, "part", 1, "x"), 26),
        (("rule", 1, "missing"), 21),
        (("nothing",), 1),
    ],
)
def test_lines(path, line):
    value = tomllib.loads(TEXT)
    for part in path if path[-1] not in ("missing", "nothing") else ():
        value = value[part]  # the path is one of the document
    assert TomlLines(TEXT).line(path) == line


def test_a_long_array_is_read_in_little_work():
    """One that looks at every line as a possible end reads the document hundreds of times over, and gives up."""
    easy = "[t]\na = [\n" + "  1, # one\n" * 20_000 + "]\nb = 2\n"
    lines = TomlLines(easy)
    assert [lines.line(("t", "a", 19_999)), lines.line(("t", "b"))] == [20_002, 20_004]
    hostile = easy.replace("one", "[one]")
    assert TomlLines(hostile).line(("t", "b")) == 1


def test_line_ends_of_other_systems():
    assert TomlLines("a = 1\r\n\r\nb = 2\r\n").line(("b",)) == 3
