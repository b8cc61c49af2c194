"""Every notebook runs without an error or a warning, gives what stands below its cells, and tells of no machine."""

import math
import re

import nbformat
import pytest

import tapline
from tests.notebooks.running import NOTEBOOKS, names, read, run, shown
from tests.paths import DATA
from tests.service.command.cli_runner import tapline as command
from tests.service.history.kept import settled
from tests.service.history.test_history import ask

REDUCED = {"4-fine-tune": {"EPOCHS": 3}}
"""What is made smaller so that a test has no long wait; cells tagged `trained` then say something else."""
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|usr|opt|var|private|mnt)/|[A-Z]:\\\\|/Users/")
MOST_BYTES = 300_000


def agree(first, second):
    """The same words, and numbers but for what another processor rounds otherwise."""
    if NUMBER.sub("#", first).split() != NUMBER.sub("#", second).split():
        return False
    pairs = zip(NUMBER.findall(first), NUMBER.findall(second), strict=True)
    return all(
        a == b or ("." in a and math.isclose(float(a.replace(",", "")), float(b.replace(",", "")), abs_tol=0.0101))
        for a, b in pairs
    )


def test_numbers_that_differ_are_seen():
    assert agree("TLS   28   0.99", "TLS 28  1.00")
    assert not agree("TLS 28 0.99", "TLS 29 0.99")
    assert not agree("TLS 28 0.99", "DNS 28 0.99")
    assert not agree("TLS 28 0.99", "TLS 28 0.90")


def test_a_warning_fails_a_cell():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import warnings; warnings.warn('old')")])
    with pytest.raises(Exception, match=r"UserWarning\S*: old"):
        run(notebook)


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.parametrize("name", names())
def test_runs_and_gives_what_stands_there(name):
    kept, parameters = read(name), REDUCED.get(name)
    done = run(kept, parameters)
    assert [cell.source for cell in done.cells] == [cell.source for cell in kept.cells]
    figures = 0
    for before, after in zip(kept.cells, done.cells, strict=True):
        if after.cell_type != "code":
            continue
        assert not [output for output in after.outputs if output.get("name") == "stderr"], after.source
        (text, drawn), (text_before, drawn_before) = shown(after), shown(before)
        assert drawn == drawn_before, after.source
        figures += drawn
        if not (parameters and "trained" in before.metadata.get("tags", [])):
            assert agree(text_before, text), f"{after.source}\n--- kept\n{text_before}\n--- now\n{text}"
    assert figures


@pytest.mark.slow
@pytest.mark.whole
def test_a_day_that_the_history_exported(tmp_path):
    captures = [DATA / "captures" / name for name in ("android.pcap", "telegram_videocall.pcapng")]
    results = list(tapline.classify(captures, traces=()))

    async def keep(history):
        for result in results:
            history.flow("tap", result.flow, result.verdict)
        await settled(history)

    ask(f"sqlite:///{tmp_path / 'history.db'}", keep)
    day = tmp_path / "day.parquet"
    asked = ("history", "export", "--final", "--to", day, "--history", "sqlite", "--data-dir", tmp_path)
    assert command(*asked).returncode == 0
    done = run(read("3-hunting"), {"DAY": str(day)})
    assert shown(done.cells[2])[0] == "66 flows of 7 hosts to 22 servers\n"  # the call was two years later
    assert sum(shown(cell)[1] for cell in done.cells if cell.cell_type == "code") == 3


@pytest.mark.parametrize("name", names())
def test_is_fit_to_be_read(name):
    notebook = read(name)
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert len(text.encode()) < MOST_BYTES
    assert not OF_A_MACHINE.search(text)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "it was not run from the top: make notebooks"
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert "You learn" in first


def test_the_page_names_every_notebook():
    page = (NOTEBOOKS / "README.md").read_text()
    assert set(re.findall(r"\]\((\S+?)\.ipynb\)", page)) == set(names())
