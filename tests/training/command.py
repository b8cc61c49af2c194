"""Runs `tapline-train` in this process, as training tests do; `tapline_train` fails the test with what it said."""

from typer.testing import CliRunner

from tapline.training.commands.tapline_train import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def tapline_train(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output
