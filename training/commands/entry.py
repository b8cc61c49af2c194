"""The entry of `tapline-train`: says what to install where the training tools are missing."""

from __future__ import annotations

import sys

from tapline.installation import install_command


def main() -> None:
    """Run the command line of `training.commands.tapline_train`."""
    try:
        from tapline.training.commands.tapline_train import main as run
    except ModuleNotFoundError as error:
        sys.exit(f"tapline-train needs {error.name}: install the extra `train` ({install_command('train')})")
    run()
