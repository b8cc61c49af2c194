"""Runs `tapline-train` in this process, as training tests do; a command that fails fails the test with what it said."""

from typer.testing import CliRunner

from training.cli import app


def tapline_train(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output
