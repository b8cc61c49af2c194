"""A command is loaded when it is called, and what the others need is not."""

import json
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tapline.service.command.cli import app
from tests.paths import ROOT

pytestmark = pytest.mark.whole

LOADS = """
import contextlib, io, json, sys
from tapline.service.command.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(json.dumps(sorted(sys.modules)))
"""
HEAVY = {"fastapi", "numpy", "onnxruntime", "ray", "sqlalchemy", "torch", "websockets"}


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--version"], set()),
        (["keys", "--help"], set()),
        (["features", "--help"], {"numpy"}),
        (["classify", "--help"], {"numpy"}),
        (["models", "--help"], {"numpy"}),
        (["doctor", "--help"], {"numpy"}),
        (["history", "--help"], {"numpy", "sqlalchemy"}),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_a_command_loads_what_it_needs_alone(arguments, needed):
    command = [sys.executable, "-W", "error", "-c", LOADS, *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert HEAVY & set(json.loads(found.stdout)) == needed


def test_every_command_is_there_with_its_help():
    commands = get_command(app).commands
    assert len(commands) == 15
    assert {name for name, command in commands.items() if command.help and command.name == name} == set(commands)


def test_a_command_that_there_is_not_is_named_beside_one_like_it():
    said = CliRunner().invoke(app, ["clasify"])
    assert said.exit_code == 2
    assert "No such command 'clasify'" in said.output
    assert "classify" in said.output
