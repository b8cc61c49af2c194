"""Runs the real command line in a process of its own."""

import subprocess
import sys

from tests.paths import ROOT

CODE = "from tapline.service.command.cli import main; main()"


def tapline(*arguments, stdin=b"", timeout=60):
    """Run `tapline` with arguments; output is text."""
    command = [sys.executable, "-W", "error", "-c", CODE, *map(str, arguments)]
    result = subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, timeout=timeout, check=False)
    result.stdout, result.stderr = result.stdout.decode(), result.stderr.decode()
    return result
