"""Runs the notebooks of `docs/notebooks` as a reader would, in a folder of their own, and tells what their cells gave.

Used by the test and by `make notebooks`, which writes what came out into the repository.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.paths import ROOT

NOTEBOOKS = ROOT / "docs" / "notebooks"
CELL_SECONDS = 280
_STRICT = (
    "import warnings",
    "warnings.simplefilter('error')",
    "warnings.filterwarnings('ignore', module='ipykernel|tornado')",  # the kernel's own, not the notebook's
)
"""Runs in the kernel before the first cell: a warning fails its cell."""


def names() -> list[str]:
    """The notebooks, in their order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def read(name: str) -> nbformat.NotebookNode:
    """A notebook as it stands in the repository."""
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


@contextmanager
def _folder() -> Iterator[Path]:
    """`docs/notebooks` beside the tests' data as in the repository, but thrown away afterwards."""
    with tempfile.TemporaryDirectory(prefix="tapline-notebooks-") as root:
        here = Path(root, "docs", "notebooks")
        here.mkdir(parents=True)
        for path in NOTEBOOKS.iterdir():
            if path.is_file():
                shutil.copy(path, here)
        Path(root, "tests").symlink_to(ROOT / "tests")
        yield here


def _environment(folder: Path) -> dict[str, str]:
    """The commands of this interpreter first on PATH, nothing of a person's own set-up, and one thread for each."""
    kept = folder / ".kept"
    (kept / "ipython").mkdir(parents=True)
    return os.environ | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "IPYTHONDIR": str(kept / "ipython"),
        "MPLCONFIGDIR": str(kept / "matplotlib"),
        "TAPLINE_HISTORY": "none",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }


def run(notebook: nbformat.NotebookNode, parameters: dict[str, object] | None = None) -> nbformat.NotebookNode:
    """A copy with the outputs of a run from the top; a cell that fails or warns raises `CellExecutionError`.

    `parameters` replace lines `NAME = ...` of the cell tagged `parameters`; the copy has its own source there again.
    """
    copy = nbformat.from_dict(notebook)
    given = [cell for cell in copy.cells if "parameters" in cell.metadata.get("tags", [])]
    sources = [cell.source for cell in given]
    for name, value in (parameters or {}).items():
        places = [(cell, line) for cell in given for line in cell.source.splitlines() if line.startswith(f"{name} = ")]
        if len(places) != 1:
            raise ValueError(f"expected one line `{name} = ...` in a cell tagged `parameters`, found {len(places)}")
        cell, line = places[0]
        cell.source = cell.source.replace(line, f"{name} = {value!r}")
    with _folder() as folder:
        client = NotebookClient(
            copy,
            kernel_name="python3",
            timeout=CELL_SECONDS,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=50", *(f"--IPKernelApp.exec_lines={line}" for line in _STRICT)],
        )
        client.execute(env=_environment(folder))
    for cell, source in zip(given, sources, strict=True):
        cell.source = source
    return copy


def shown(cell: nbformat.NotebookNode) -> tuple[str, int]:
    """What a reader sees below a cell: its text, and the number of figures."""
    texts, figures = [], 0
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif "image/png" in output.get("data", {}):
            figures += 1
        else:
            texts.append(output.data["text/plain"])
    return "".join(texts), figures
