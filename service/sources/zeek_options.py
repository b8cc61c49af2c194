"""What an operator adds to a Zeek of ours: scripts and values of options, checked before Zeek sees them.

Zeek reads an argument as an option where it begins with a dash, as an assignment where it has `=`, and writes what is
assigned into a script of its own: what would be more than a value there is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

OWN_OPTIONS = ("Tapline::listen_port", "Tapline::sensor")
"""What is set for each Zeek of ours, and for nobody else to set."""

MAX_CHARS = 1024
_SCRIPT = re.compile(r"[A-Za-z0-9_./@+-]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(::[A-Za-z_][A-Za-z0-9_]*)*")
_VALUE = re.compile(r"[A-Za-z0-9_.:/,+%@*{}\[\] -]+")


class ZeekOptionError(ValueError):
    """A script or an option cannot be given to Zeek; the message says why."""


def zeek_script(text: str) -> str:
    """The argument for a script: the path of a file or of a package, made absolute, or a name on Zeek's own path.

    Raises:
        ZeekOptionError: it is neither.
    """
    path = Path(text)
    if 0 < len(text) <= MAX_CHARS and "\0" not in text and path.exists():
        text = str(path.resolve())
    if not text or len(text) > MAX_CHARS or text.startswith("-") or not _SCRIPT.fullmatch(text):
        raise ZeekOptionError(
            "--zeek-script: expected a file, or a name such as protocols/conn/mac-logging; of letters, digits and "
            "_ . / @ + - alone, and not with - at its start"
        )
    return text


def zeek_option(text: str) -> str:
    """The argument that sets an option of Zeek: `Name=value`.

    Raises:
        ZeekOptionError: it is none, or sets what is set here.
    """
    name, equals, value = text.partition("=")
    if not equals or len(text) > MAX_CHARS or not _NAME.fullmatch(name):
        raise ZeekOptionError(
            "--zeek-option: expected Name=value, as Site::local_nets={10.0.0.0/8} or Pcap::snaplen=1500"
        )
    if not _VALUE.fullmatch(value):
        raise ZeekOptionError(
            f"--zeek-option {name}: expected a value of letters, digits, blanks and _ . : / , + % @ * {{ }} [ ] - "
            "alone; put anything else into a script, and name it with --zeek-script"
        )
    if name in OWN_OPTIONS:
        raise ZeekOptionError(
            f"--zeek-option {name}: it is set for each interface (--interface IF=NAME names a sensor)"
        )
    return text


def zeek_arguments(scripts: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments for scripts and options, in order.

    Raises:
        ZeekOptionError: as above.
    """
    return [*map(zeek_script, scripts), *map(zeek_option, options)]
