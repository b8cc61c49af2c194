"""Warnings that point at the line outside tapline which asked, however deep inside their reason was found."""

from __future__ import annotations

import sys
import warnings

_OWN = __name__.partition(".")[0]


def warn_caller(message: str) -> None:
    """Warn, in the name of the innermost line that is not tapline's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == _OWN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
