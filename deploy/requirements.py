"""Writes what tapline needs, with the extras named, a line each: for a layer that changes only when they do."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(
    "\n".join(
        project["dependencies"] + [need for extra in sys.argv[1:] for need in project["optional-dependencies"][extra]]
    )
)
