"""How this tapline was installed: its version, how to add an extra to it, and how to start a module of it."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec

DISTRIBUTION = "tapline-traffic"
"""The name on the package index: `tapline` there is somebody else's."""

Extra = Literal["bulk", "cpu", "drift", "hub", "kafka", "pandas", "search", "torch", "train"]

PACKAGE = Path(__file__).parent
"""The folder of the package."""

_START = (
    "import sys; from importlib import import_module; "
    "sys.path.insert(0, sys.argv.pop(1)); import_module(sys.argv.pop(1)).main()"
)


class _VersionControl(msgspec.Struct):
    vcs: str
    commit_id: str


class _Folder(msgspec.Struct):
    editable: bool = False


class _Origin(msgspec.Struct):
    """What pip writes of a distribution that is not from an index (PEP 610)."""

    url: str
    vcs_info: _VersionControl | None = None
    dir_info: _Folder | None = None


def version() -> str:
    """The version of the distribution, `unknown` where the code runs without being installed."""
    found = _distribution()
    return found.version if found else "unknown"


def install_command(extra: Extra) -> str:
    """The command that adds an extra to this very tapline, from where it came."""
    found = _distribution()
    record = found.read_text("direct_url.json") if found else None
    if found is None:
        return f"pip install '.[{extra}]' in a checkout"
    if record is None:
        return f"pip install '{DISTRIBUTION}[{extra}]=={found.version}'"
    origin = msgspec.json.decode(record, type=_Origin)
    if origin.dir_info is not None:
        folder = unquote(urlsplit(origin.url).path)
        return f"pip install {'-e ' if origin.dir_info.editable else ''}'{folder}[{extra}]'"
    url = f"{origin.vcs_info.vcs}+{origin.url}@{origin.vcs_info.commit_id}" if origin.vcs_info else origin.url
    return f"pip install '{DISTRIBUTION}[{extra}] @ {url}'"


def _distribution() -> Distribution | None:
    try:
        return distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `main` of a module of this very package, whatever lies in the current directory (`-P`)."""
    return [sys.executable, "-P", "-c", _START, str(PACKAGE.parent), module, *arguments]
