"""The entry of `tapline-train`: says what to install where the training tools are missing."""

from __future__ import annotations

import sys

from tapline.installation import Extra, install_command


def main() -> None:
    """Run the command line of `training.commands.tapline_train`."""
    try:
        from tapline.training.commands.tapline_train import main as run
    except ModuleNotFoundError as error:
        extra: Extra = "cpu" if error.name == "onnxruntime" else "train"
        sys.exit(f"tapline-train needs {error.name}: install the extra `{extra}` ({install_command(extra)})")
    run()
