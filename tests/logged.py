"""What is logged while a test looks."""

import contextlib
import logging

from tapline.service.log_lines import NAME


@contextlib.contextmanager
def logs_as_they_were():
    """Whatever is set of the log in between ends."""
    logger = logging.getLogger(NAME)
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    try:
        yield logger
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@contextlib.contextmanager
def capture_logs():
    """A list of every event with its fields, its `event` and its `log_level`; nothing is written."""
    found = []

    class Kept(logging.Handler):
        def emit(self, record):
            found.append({**record.msg.fields, "event": record.msg.name, "log_level": record.levelname.lower()})

    with logs_as_they_were() as logger:
        logger.handlers[:], logger.propagate = [Kept()], False
        logger.setLevel(logging.INFO)
        yield found


def reset_logs():
    """Nobody has said how logs are written."""
    logger = logging.getLogger(NAME)
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
