"""The log of a process: one line an event on standard error, in logfmt, whatever text stands in its fields."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

from tapline.models.foreign_text import clean

MAX_EXCEPTION_CHARS = 1 << 14


def configure_logs() -> None:
    """Write logs to standard error; tracebacks without the values of variables, which could be traffic."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a broken upload is answered, not logged
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _clean_fields,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # that of now: a caller may have put another there
    )


def configure_logs_by_default() -> None:
    """Write logs so, unless the process that this is a library in has said how they are written."""
    if not structlog.is_configured():
        configure_logs()


def _clean_fields(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if key == "exception":
            event[key] = clean(str(value), MAX_EXCEPTION_CHARS, keep="\n")
        elif not isinstance(value, bool | int | float | None):
            event[key] = clean(str(value))
    return event
