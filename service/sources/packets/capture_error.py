"""The errors of capture reading. Each message is one clear sentence for the person who gave the capture."""

from __future__ import annotations


class CaptureError(ValueError):
    """The capture cannot be read, or not with these options; the message says what was expected and what to do."""


class CaptureTooLargeError(CaptureError):
    """The capture holds more bytes than the caller allows, after decompression."""
