"""Runs the real command line in a process of its own."""

import subprocess
import sys

from tests.paths import ROOT

CODE = "from tapline.service.command.cli import main; main()"
EVERY_COMMAND = (
    "from typer.main import get_command; from tapline.service.command.cli import app; "
    "assert all(get_command(app).commands.values())"
)
"""Loads them all, each of which is otherwise loaded when it is called."""


def tapline(*arguments, stdin=b"", timeout=200):
    """Run `tapline` with arguments; output is text."""
    command = [sys.executable, "-W", "error", "-c", CODE, *map(str, arguments)]
    result = subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, timeout=timeout, check=False)
    result.stdout, result.stderr = result.stdout.decode(), result.stderr.decode()
    return result
