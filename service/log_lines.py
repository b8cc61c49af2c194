"""The log of this package: events with their fields, and the lines that a process of ours writes of them, in logfmt,
whatever text stands in a field. All of it goes to `logging` by the name `tapline`: a process that this is a library in
says there what becomes of it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback

from tapline.models.foreign_text import clean

MAX_EXCEPTION_CHARS = 1 << 14
NAME = "tapline"

_logger = logging.getLogger(NAME)


class Event:
    """What is logged, the message of a record: `name`, and `fields` by their names."""

    def __init__(self, name: str, fields: dict[str, object]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join(_pair(name, value) for name, value in {"event": self.name, **self.fields}.items())


class Log:
    """Takes events; `exc_info` is an error whose traceback belongs to one."""

    def info(self, event: str, /, **fields: object) -> None:
        """Log what happens in the course of things."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what somebody should see to."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """Log what failed."""
        self._log(logging.ERROR, event, fields, exc_info)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log what failed with the error that is being handled."""
        self._log(logging.ERROR, event, fields, sys.exc_info()[1])

    def _log(self, level: int, event: str, fields: dict[str, object], error: BaseException | None = None) -> None:
        if _logger.isEnabledFor(level):
            _logger.log(level, Event(event, fields), exc_info=error)


log = Log()


def configure_logs() -> None:
    """Write logs to standard error; tracebacks without the values of variables, which could be traffic."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a broken upload is answered, not logged
    handler = _Lines()
    _write_to(handler)
    logging.getLogger().handlers[:] = [handler]  # what libraries warn of


def configure_logs_by_default() -> None:
    """Write logs so, unless the process that this is a library in has said how they are written."""
    if not _logger.hasHandlers():
        _write_to(_Lines())


def silence_logs() -> None:
    """Write no logs, of libraries neither."""
    handler = logging.NullHandler()
    _write_to(handler)
    logging.getLogger().handlers[:] = [handler]


def _write_to(handler: logging.Handler) -> None:
    _logger.handlers[:] = [handler]
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


class _Lines(logging.Handler):
    """Writes to the standard error of now: a caller may have put another there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; where nobody can read it, it is lost."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{line(record)}\n")
            sys.stderr.flush()


def line(record: logging.LogRecord) -> str:
    """A record of this log, or of a library's, in logfmt, on one line."""
    seconds, micros = divmod(int(record.created * 1_000_000), 1_000_000)
    at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06}Z"
    words = [f"timestamp={at} level={record.levelname.lower()} {_said(record)}"]
    if record.exc_info and (error := record.exc_info[1]) is not None:
        told = "".join(traceback.format_exception(error)).rstrip("\n")
        words.append(_pair("exception", clean(told, MAX_EXCEPTION_CHARS, keep="\n"), is_clean=True))
    return " ".join(words)


def _said(record: logging.LogRecord) -> str:
    if isinstance(record.msg, Event):
        return str(record.msg)
    return str(Event(record.getMessage(), {"logger": record.name}))


def _pair(name: str, value: object, *, is_clean: bool = False) -> str:
    if value is None or value is True:
        return name if value else f"{name}="
    if value is False:
        return f"{name}=false"
    text = str(value)
    if not is_clean and not isinstance(value, int | float):
        text = clean(text)
    is_quoted = any(sign in text for sign in ' ="')
    if is_quoted:
        text = text.replace("\\", "\\\\")
    text = text.replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{text}"' if is_quoted else f"{name}={text}"
