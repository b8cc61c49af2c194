"""Every block of every page is run, parsed, or says why not; every command line is one that the programs know."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.documentation.command_lines import command_lines, problem
from tests.documentation.pages import LANGUAGES, SHELL, Block, blocks, blocks_of, inline_code, page_names
from tests.documentation.reader import Reader, script, typed
from tests.logged import reset_logs
from tests.paths import ROOT
from tests.zeek.clusters import free_ports

ELSEWHERE = {
    "docs/python.md": "tests/service/python/test_python_page.py",
    "docs/zeek-logs.md": "tests/zeek/test_zat.py",
}
"""Pages whose Python another test runs, where it has what they need and looks at what they give."""
PAGES = page_names()
LEAST_REASON = 15
MADE = re.compile(r"(?<![\w./-])make ((?:[A-Z]+=\S+ )*)([a-z][\w-]*)")
SCRIPTS = re.compile(r"python3? ((?:benchmarks|tests|docs)/[\w./-]+\.py)")


def known(block):
    """What is wrong with a block before anything is run."""
    if block.language not in LANGUAGES:
        return f"{block}: language {block.language!r}, expected one of {', '.join(LANGUAGES)}"
    if block.mark == "not run" and len(block.said) < LEAST_REASON:
        return f"{block}: says that it is not run, and not why"
    if block.mark in ("file", "runs on until", "status") and not block.said:
        return f"{block}: a mark {block.mark!r} without what it is of"
    return ""


def parsed(block):
    """Read a block as its language has it; raises what its reader raises."""
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "yaml":
        list(yaml.safe_load_all(block.text))
    elif block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language in SHELL:
        subprocess.run(["bash", "-n"], input=script(block), text=True, check=True, capture_output=True)


def unknown_words(text):
    """What the programs do not know of a text of a shell."""
    calls = [problem(call) for call in command_lines(text)]
    targets = set(re.findall(r"(?m)^([a-z][\w-]*):", (ROOT / "Makefile").read_text()))
    made = [f"make: no target {target!r}" for _, target in MADE.findall(text) if target not in targets]
    return [*filter(None, calls), *made, *(path for path in SCRIPTS.findall(text) if not (ROOT / path).exists())]


def is_run(block):
    return block.mark != "not run" and block.language in (*SHELL, "python")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_known_and_parses(page):
    assert [text for text in map(known, blocks(page)) if text] == []
    for block in blocks(page):
        parsed(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_known(page):
    said = [(str(block), unknown_words(script(block))) for block in blocks(page) if block.language in SHELL]
    for line, code in inline_code(page):  # which may speak of an option without its value
        said.append((f"{page}:{line}", [text for text in unknown_words(code) if "requires an argument" not in text]))
    assert [entry for entry in said if entry[1]] == []


def test_what_runs_elsewhere_does():
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text()
        assert {block.language for block in blocks(page) if is_run(block)} == {"python"}


@pytest.mark.whole
@pytest.mark.timeout(900)  # a page of many commands, each of which starts a process
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and any(map(is_run, blocks(page)))])
def test_every_block_runs(page, tmp_path, monkeypatch):
    text = "".join(block.text for block in blocks(page) if is_run(block))
    if missing := [program for program in ("curl", "jq") if f"{program} " in text and shutil.which(program) is None]:
        pytest.skip(f"no {missing[0]} on PATH")
    reset_logs()  # another test may have said how logs are written
    monkeypatch.chdir(tmp_path)
    (port,) = free_ports(1)
    with Reader(tmp_path, port) as reader:
        for block in blocks(page):
            reader.read(block)


BAD = {
    "```\ntapline\n```": "language ''",
    "```cobol\nX\n```": "language 'cobol'",
    "<!-- not run: no -->\n```shell\ntapline\n```": "not why",
    "<!-- file: -->\n```toml\na = 1\n```": "without what it is of",
}


@pytest.mark.parametrize(("text", "said"), BAD.items())
def test_a_block_that_nobody_knows_is_named(text, said):
    (block,) = blocks_of("page.md", "# Title\n\n" + text)
    assert known(block).startswith("page.md:")
    assert said in known(block)


@pytest.mark.parametrize(
    "text", ["```json\n{,}\n```", "```toml\na\n```", "```yaml\na: [\n```", "```shell\nif\n```", "```python\nif\n```"]
)
def test_a_block_that_does_not_parse_is_seen(text):
    (block,) = blocks_of("page.md", text)
    with pytest.raises((ValueError, SyntaxError, yaml.YAMLError, subprocess.CalledProcessError)):
        parsed(block)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tapline clasify capture.pcap", "no command 'clasify'"),
        ("sudo env A=b .venv/bin/tapline serve --prt 1", "No such option: --prt"),
        ("n=$(tapline classify x --format xml | wc -l)", "'xml' is not one of"),
        ("tapline-train finetune --features f \\\n  --outt o", "No such option: --outt"),
        ("make sit", "no target 'sit'"),
        ("python benchmarks/nothing.py", "benchmarks/nothing.py"),
    ],
)
def test_words_that_no_program_knows_are_named(line, said):
    (found,) = unknown_words(line)
    assert said in found


def test_the_reader_sees_what_fails_and_what_is_said_otherwise(tmp_path):
    with Reader(tmp_path, 1) as reader:
        reader.read(Block("p", 1, "console", "$ echo one two \\\n>   three\none ... three\n$ true\n"))
        reader.read(Block("p", 2, "toml", "a = 1\n", "file", "new/a.toml"))
        reader.read(Block("p", 3, "shell", "grep -q 'a = 1' new/a.toml\n"))
        reader.read(Block("p", 4, "shell", "exit 3\n", "status", "3"))
        with pytest.raises(AssertionError, match="status 3"):
            reader.read(Block("p", 5, "shell", "exit 3\ntrue\n"))
        with pytest.raises(AssertionError, match="it says"):
            reader.read(Block("p", 6, "console", "$ echo one\ntwo\n"))
        with pytest.raises(AssertionError, match="never said"):
            reader.read(Block("p", 7, "shell", "echo ready\n", "runs on until", "steady"))
        reader.read(Block("p", 8, "shell", "trap 'exit 0' INT; echo is ready; sleep 60 & wait\n",
                          "runs on until", "is ready"))  # fmt: skip
    assert Path(tmp_path / "capture.pcap").exists()


def test_data_blocks_are_some():
    assert {block.language for page in PAGES for block in blocks(page)} >= {"json", "toml", "console", "python"}
    assert typed(Block("p", 1, "shell", "one\ntwo\n")) == [("one\ntwo\n", "")]
