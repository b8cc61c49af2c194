"""A stand-in for `zeek` on the PATH: a script that reports its process and arguments, then does as it is told."""

import os
import select
import stat

REPORT = """#!/bin/sh
printf '%s\\n' "$$" "$@" END >"{pipe}"
"""
WATCHES_FOR_EVER = "exec sleep 600\n"
DEADLINE_SECONDS = 180


class StandIn:
    """`environment` puts it on the PATH; `started` waits for its next start."""

    def __init__(self, folder, does=WATCHES_FOR_EVER):
        self.folder = folder / "bin"
        self.folder.mkdir()
        pipe = folder / "started"
        os.mkfifo(pipe)
        self._pipe = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._keep = os.open(pipe, os.O_WRONLY)  # so that the pipe has no end between two starts
        self._read = b""
        script = self.folder / "zeek"
        script.write_text(REPORT.format(pipe=pipe) + does)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    @property
    def environment(self):
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}

    def started(self):
        """The process number and the arguments of the next one that starts."""
        while b"\nEND\n" not in self._read:
            assert select.select([self._pipe], [], [], DEADLINE_SECONDS)[0], "no zeek was started"
            self._read += os.read(self._pipe, 65536)
        report, _, self._read = self._read.partition(b"\nEND\n")
        number, *arguments = report.decode().split("\n")
        return int(number), arguments

    def close(self):
        os.close(self._pipe)
        os.close(self._keep)


class Process:
    """Another's process, which no later one with its number is mistaken for."""

    def __init__(self, number):
        self.descriptor = os.pidfd_open(number)

    def ends(self, seconds=DEADLINE_SECONDS):
        """Whether it ends within so long."""
        return bool(select.select([self.descriptor], [], [], seconds)[0])

    def close(self):
        os.close(self.descriptor)
