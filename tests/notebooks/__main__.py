"""`python -m tests.notebooks [NAME...]`: runs the notebooks and writes them with what they give."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import nbformat

from tests.notebooks.running import NOTEBOOKS, names, read, run


def write(name: str) -> None:
    """Run a notebook and put it back with what it gave, without what differs from run to run."""
    done = run(read(name))
    for number, cell in enumerate(done.cells):
        cell.id = f"cell-{number}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    done.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "name": "python",
            "pygments_lexer": "ipython3",
        },
    }
    nbformat.validate(done)
    nbformat.write(done, NOTEBOOKS / f"{name}.ipynb")


def main(wanted: Sequence[str]) -> None:
    """Write the notebooks with these names or all."""
    if unknown := set(wanted) - set(names()):
        sys.exit(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    for name in wanted or names():
        print(name, flush=True)
        write(name)


if __name__ == "__main__":
    main(sys.argv[1:])
