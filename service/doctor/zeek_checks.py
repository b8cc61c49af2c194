"""Zeek on this machine: its version, whether it takes tapline's scripts, and whether it may capture."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from tapline.models.foreign_text import clean
from tapline.service.doctor.finding import CommandError, Finding, output_of
from tapline.service.sources.zeek_process import HOW_TO_GET_ZEEK, ZeekError, package_scripts, zeek_executable

OLDEST, BEYOND = (8, 0), (10, 0)
"""Versions of Zeek that the package is made for: the first, and the first that it has not been tried with."""

VERSION_SECONDS = 10
PARSE_SECONDS = 60
_SAID_CHARS = 300
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
"""Numbers of capabilities(7)."""


class ZeekVersion:
    """Zeek is there, and of a version that the package is made for; `is_needed` where an interface is asked for."""

    what = "Zeek"

    def __init__(self, is_needed: bool) -> None:
        self._is_needed = is_needed

    def run(self) -> Iterator[Finding]:
        """Ask `zeek --version`."""
        try:
            path = zeek_executable()
        except ZeekError:
            if self._is_needed:
                yield Finding(self.what, "problem", "no zeek on PATH", HOW_TO_GET_ZEEK.partition(". ")[2])
            else:
                yield Finding(self.what, "not applicable", "none on PATH, and none is needed without --interface")
            return
        try:
            _, said = output_of([path, "--version"], VERSION_SECONDS)
        except CommandError as error:
            yield Finding(self.what, "problem", f"{path} --version: {error}", "Install Zeek again: 8.0 LTS to 9.")
            return
        found = re.search(r"version (\d+)\.(\d+)[\w.-]*", said)
        if found is None:
            yield Finding(
                self.what, "problem", f"{path} says no version: {clean(said, 60)}", "Install Zeek 8.0 LTS to 9."
            )
            return
        version, shown = (int(found[1]), int(found[2])), f"{clean(found[0], 40).removeprefix('version ')}, {path}"
        if version < OLDEST:
            yield Finding(self.what, "problem", shown, "tapline's package needs Zeek 8.0 or later: install 8.0 LTS.")
        elif version >= BEYOND:
            yield Finding(self.what, "warning", shown, "It has not been tried with tapline: prefer Zeek 8.0 LTS to 9.")
        else:
            yield Finding(self.what, "ok", shown)


class ZeekPackage:
    """Zeek takes tapline's scripts, and what the operator adds to them (`more`, as of `zeek_arguments`)."""

    what = "Zeek package"

    def __init__(self, more: Sequence[str], is_needed: bool) -> None:
        self._more = more
        self._is_needed = is_needed

    def run(self) -> Iterator[Finding]:
        """Let Zeek read the scripts and stop there."""
        try:
            zeek = zeek_executable()
        except ZeekError:
            outcome = Finding(self.what, "not applicable", "there is no zeek that could read it")
            yield outcome
            return
        try:
            scripts = str(package_scripts())
            status, said = output_of([zeek, "--parse-only", scripts, *self._more], PARSE_SECONDS)
        except ZeekError as error:
            yield Finding(self.what, "problem", "it is not installed", f"{error}.")
            return
        except CommandError as error:
            yield Finding(self.what, "problem", f"reading it: {error}", "Try it: zeek --parse-only, with that folder.")
            return
        if status == 0:
            beside = f", with {' '.join(self._more)}" if self._more else ""
            yield Finding(self.what, "ok", f"Zeek reads {scripts}{beside}")
            return
        advice = (
            "Take out or mend what --zeek-script and --zeek-option add." if self._more else "Install Zeek 8.0 to 9."
        )
        yield Finding(self.what, "problem", f"Zeek refuses it: {clean(said, _SAID_CHARS)}", advice)


class CaptureRights:
    """The Zeek that tapline starts may capture: as root, or by capabilities of its file."""

    what = "capture rights"

    def __init__(self, is_needed: bool) -> None:
        self._is_needed = is_needed

    def run(self) -> Iterator[Finding]:
        """Look at this process's capabilities, and at those of the file."""
        if not self._is_needed:
            yield Finding(self.what, "not applicable", "no --interface is asked for")
            return
        try:
            zeek = Path(zeek_executable()).resolve()
        except ZeekError:
            yield Finding(self.what, "not applicable", "there is no zeek that could have them")
            return
        yield rights(_own_status(), _of_file(zeek), zeek)


def rights(status: dict[str, str], of_file: int, zeek: Path) -> Finding:
    """The finding, by `/proc/self/status` of who starts Zeek and the capabilities that the file gives."""
    what, raw = CaptureRights.what, 1 << CAP_NET_RAW
    is_root = os.geteuid() == 0
    held, ambient, bounding = (int(status.get(name, "0"), 16) for name in ("CapEff", "CapAmb", "CapBnd"))
    if (is_root and held & raw) or ambient & raw:
        return Finding(what, "ok", "root" if is_root else "this process hands CAP_NET_RAW on")
    if not bounding & raw:
        return Finding(
            what, "problem", "CAP_NET_RAW is taken from this process and all that it starts",
            "Give it to the container or unit: cap_add NET_RAW, or AmbientCapabilities=CAP_NET_RAW.",
        )  # fmt: skip
    command = f"sudo setcap cap_net_raw,cap_net_admin=eip {zeek}"
    if of_file & raw and status.get("NoNewPrivs") == "1":
        return Finding(
            what, "problem", f"{zeek} has CAP_NET_RAW, which no_new_privs takes away",
            "Take NoNewPrivileges out of the unit, or give it AmbientCapabilities=CAP_NET_RAW.",
        )  # fmt: skip
    if of_file & raw:
        return Finding(what, "ok", f"{zeek} has CAP_NET_RAW")
    return Finding(what, "problem", f"neither root nor CAP_NET_RAW on {zeek}", f"Run it as root, or: {command}")


def _own_status() -> dict[str, str]:
    pairs = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _of_file(path: Path) -> int:
    """The permitted capabilities of a file, where they are effective: `struct vfs_cap_data` of linux/capability.h."""
    try:
        data = os.getxattr(path, "security.capability")
    except OSError:  # it has none, or its file system knows none
        return 0
    magic, permitted = struct.unpack_from("<II", data)
    return permitted if magic & 1 else 0
