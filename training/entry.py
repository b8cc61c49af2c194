"""The entry of `tapline-train`: says what to install where the training tools are missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of `training.cli`."""
    try:
        from training.cli import main as run
    except ModuleNotFoundError as error:
        sys.exit(
            f"tapline-train needs {error.name}: install the extra `train` from where this tapline came from "
            "(pip install '.[train]' in a checkout), or run `make test` and use .venv-dev"
        )
    run()
