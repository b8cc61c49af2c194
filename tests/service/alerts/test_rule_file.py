"""What is wrong with a file of rules is said all at once: where, what was expected, what came."""

import pytest

from tapline.service.alerts.rule_faults import MAX_FOUND, MAX_PROBLEMS, AlertRulesError
from tapline.service.alerts.rule_file import MAX_FILE_BYTES, read_rules
from tapline.service.alerts.rule_models import MAX_RULES, NAME_EXPECTED
from tests.paths import DATA
from tests.service.alerts.ruled import mistakes, rule, written


def test_every_mistake_is_told_with_its_line(tmp_path):
    said = (DATA / "alerts" / "mistakes.txt").read_text().replace("FOLDER", str(tmp_path))
    assert mistakes(tmp_path, (DATA / "alerts" / "mistakes.toml").read_text()) == said.splitlines()


DATE = 'expected a date such as 2026-12-31, or a time with its offset such as 2026-12-31T18:00:00Z, got "soon"'
TWO = "this is no TOML: `{}` is there twice, first on line {}"
ZONE = "expected a time zone that is known here, such as Europe/Zurich or UTC"
PATTERN = "expected a text, a glob or @list, with at most one ! before it"
TWICE = {"rate": '{count = 2, seconds = 9, by = "label"}', "unknown_share": "{min = 0.5, seconds = 9}"}
NEVER = {"min_confidence": "0.9", "max_confidence": "0.1"}
LABELS = '[list.x]\nof = "labels"\n'

ONE = [
    # rules, the line that is named, what is said of it
    ('[[rule]]\nname = "a\n', 2, "this is no TOML: illegal character '\\n'"),
    ('[[rule]]\nname = ["a"\n', 3, "this is no TOML: unclosed array at its end"),
    ('[rule]\nname = "a"\n', 1, "rule: expected [[rule]], with two brackets"),
    ("rule = [3]\n", 1, "rule 1: expected a table [[rule]], got 3"),
    ("\n[[rule]]\n", 2, "rule 1: expected a key `name`, there is none"),
    ("[[list]]\n", 1, "list: expected tables [list.NAME], got a list"),
    (rule() + "\n[[rules]]\nname = 'x'\n", 4, "unknown key `rules`, did you mean `rule`?"),
    (rule(suppress="60"), 3, "rule r: suppress: expected a table, got 60"),
    ('[list.x]\nof = "labels"\nentries = [{value = "x", until = "soon"}]\n', 3, f"list x: entries.until: {DATE}"),
    ("[[rule]]\nname = 'r'\n\nlabel = [\n'x']\nlabel = 'y'\n", 6, TWO.format("rule.label", 4)),
    ("[list.a]\nof = 'labels'\n\n[list.a]\n", 4, TWO.format("list.a", 1)),
    ("a.b = 1\na.c = 1\na.b = 2\n", 3, TWO.format("a.b", 1)),
    ("a = {b = 1, b = 2}\n", 1, "this is no TOML: duplicate inline table key 'b'"),
    (rule(kind="3"), 3, "rule r: kind: expected flow, trace or drift, got 3"),
    (rule(timezone='"Mars"'), 3, f'rule r: timezone: {ZONE}, got "Mars"'),
    (
        rule(message='"{label"'),
        3,
        "rule r: message: expected '}' before end of string; write {{ and }} for braces, got \"{label\"",
    ),
    (
        rule(message='"{label.x}"'),
        3,
        'rule r: message: {label.x} is no name of such a rule: expected `label`, got "{label.x}"',
    ),
    (rule(kind='"drift"', label='"x"'), 4, "rule r: unknown key `label`: it is of rules of kind flow or trace"),
    (rule(label='"!!x"'), 3, f'rule r: label: {PATTERN}, got "!!x"'),
    (rule(sensor='"@x"') + LABELS, 3, 'rule r: sensor: expected no list here, got "@x"'),
    (rule(during="[]"), 3, "rule r: during: expected at least 1 in a list, got a list"),
    ('[list."a b"]\nof = "labels"\n', 1, f"list a b: {NAME_EXPECTED} in its name"),
    (rule(**NEVER), 1, "rule r: min_confidence 0.9 is more than max_confidence 0.1: nothing can meet both"),
    (rule(**TWICE), 1, "rule r: rate and unknown_share: expected one of them; make two rules"),
]


@pytest.mark.parametrize(("text", "line", "said"), ONE)
def test_one_mistake(tmp_path, text, line, said):
    assert mistakes(tmp_path, text) == [f"rules.toml:{line}: {said}"]


def test_a_wrong_kind_hides_nothing(tmp_path):
    assert mistakes(tmp_path, rule(kind='"flows"', severity='"High"', lable='"x"')) == [
        'rules.toml:3: rule r: kind: expected flow, trace or drift, got "flows", did you mean `flow`?',
        "rules.toml:4: rule r: severity: expected 'low', 'medium', 'high' or 'critical', got \"High\", "
        "did you mean `high`?",
        "rules.toml:5: rule r: unknown key `lable`, did you mean `label`?",
    ]
    assert len(mistakes(tmp_path, rule(kind="3", suspicious="true", subject="3"))) == 2


def test_a_list_in_a_file_is_told_by_its_own_lines(tmp_path):
    written(
        tmp_path,
        "# ours\n10.0.0.0/8\n\n10.0.0.x  # typing\n10.0.0.1 unitl 2026-12-31\n::1 until 2026-13-01\n",
        "own.txt",
    )
    said = mistakes(tmp_path, '[list.own]\nof = "networks"\nfile = "own.txt"\n')
    wanted = "expected one entry a line, such as `10.0.0.5`, or `10.0.0.5 until 2026-12-31  # why`"
    assert said == [
        'own.txt:4: expected an address, or a network such as 10.0.0.0/8 or 2001:db8::/32, got "10.0.0.x  # typing"',
        f'own.txt:5: {wanted}, got "10.0.0.1 unitl 2026-12-31"',
        f'own.txt:6: {wanted}, got "::1 until 2026-13-01"',
    ]


def test_files_that_cannot_be_read(tmp_path):
    assert mistakes(tmp_path, "#" * (MAX_FILE_BYTES + 1)) == ["rules.toml:1: expected at most 1 MiB"]
    (tmp_path / "rules.toml").write_bytes(b"\n\n# \xff\n")
    with pytest.raises(ValueError, match=r"rules.toml:3: expected UTF-8"):
        read_rules(tmp_path / "rules.toml")
    with pytest.raises(ValueError, match=r"nothing.toml:1: cannot be read: No such file"):
        read_rules(tmp_path / "nothing.toml")
    with pytest.raises(ValueError, match=r"1: expected a file"):
        read_rules(tmp_path)


def test_what_is_told_is_bounded_and_safe(tmp_path):
    said = mistakes(tmp_path, "".join(f'[[rule]]\nname = "r{number}"\nx = 1\n' for number in range(MAX_PROBLEMS + 5)))
    assert (len(said), said[-1]) == (MAX_PROBLEMS + 1, "… and 5 more")
    many = "".join(f'[[rule]]\nname = "r{number}"\ntimezone = "Mars"\nx = 1\n' for number in range(MAX_RULES))
    assert mistakes(tmp_path, many)[-1] == "… and many more"
    with pytest.raises(AlertRulesError) as error:
        read_rules(written(tmp_path, many))
    assert len(error.value.problems) == MAX_FOUND
    assert mistakes(tmp_path, many + rule()) == [
        f"rules.toml:1: expected at most {MAX_RULES} rules, got {MAX_RULES + 1}"
    ]
    said = mistakes(tmp_path, rule(severity='"\\u001b[31m' + "x" * 5000 + '"', **{'"\\u001b"': "1"}))
    assert all("\x1b" not in line and len(line) < 300 for line in said)
    assert len(said) == 2
