"""The command lines of tapline in texts of a shell, and whether the program knows their words."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from typer.main import get_command

from tapline.service.command.cli import app
from tapline.training.commands.tapline_train import app as train_app

PROGRAMS: dict[str, Any] = {"tapline": get_command(app), "tapline-train": get_command(train_app)}
STARTERS = {"$", "!", "do", "else", "env", "exec", "if", "nice", "nohup", "setpriv", "sudo", "then", "time", "timeout"}
_BETWEEN = set("();<>|&")


def command_lines(text: str) -> Iterator[list[str]]:
    """Each call of `tapline` or `tapline-train` in a text of a shell: the program's name and its arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = _words(line)
        while words:
            end = next((place for place, word in enumerate(words) if set(word) <= _BETWEEN), len(words))
            call = words[:end]
            start = next((n for n, word in enumerate(call) if PurePath(word).name in PROGRAMS), None)
            if start is not None and (start == 0 or _goes_before(call[:start])):
                yield [PurePath(call[start]).name, *call[start + 1 :]]
            words = words[end + 1 :]


def _goes_before(words: list[str]) -> bool:
    """Whether what stands before a program starts it: `sudo env A=b`, a variable, `exec`, `timeout 5`."""
    return all("=" in word or word in STARTERS or word.startswith("-") or word.isdigit() for word in words)


def _words(line: str) -> list[str]:
    """Words and operators of a line, without its comment, up to a quotation that ends on another line."""
    lexer = shlex.shlex(re.sub(r"\$\(", "( ", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    with contextlib.suppress(ValueError):  # of a quotation that does not end
        words.extend(lexer)
    return words


def problem(call: list[str]) -> str:
    """What a program says against a call, or nothing: words it does not know, and values that are none.

    That something is missing is nothing against it: a text may speak of a part of a call.
    """
    command, arguments, name = PROGRAMS[call[0]], [word for word in call[1:] if word != "..."], call[0]
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        if arguments[0] not in command.commands:
            return f"{name}: no command {arguments[0]!r}"
        command, name, arguments = command.commands[arguments[0]], f"{name} {arguments[0]}", arguments[1:]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of --help
            command.make_context(name, arguments)
    except Exception as error:  # typer keeps the classes of its parser to itself
        kind = type(error).__name__
        if kind in ("Exit", "MissingParameter", "NoArgsIsHelpError"):
            return ""
        if hasattr(error, "format_message"):
            return f"{name}: {error.format_message()}"
        raise
    return ""
