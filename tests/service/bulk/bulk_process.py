"""Processes of `tapline bulk` and of Ray's clusters, as tests start and end them."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.service.command.cli_runner import CODE

STARTS = 4
RUN_SECONDS = 420
UNDONE = "its worker ended before it was done"
"""What the account of a capture says while a worker is at it."""

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def bulk(*arguments, env=os.environ):
    """A process of `tapline bulk` without traces, in a session of its own."""
    command = [sys.executable, "-c", CODE, "bulk", *map(str, arguments), "--traces", "none", "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True, start_new_session=True,
        env={**env, **LOOPBACK} if "--ray-address" in arguments else env,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def ended(process):
    """Wait for its end: status and what it said."""
    said = "".join(process.communicate(timeout=RUN_SECONDS))
    assert "Traceback" not in said, said
    return process.returncode, said


def interrupt(process):
    """Ctrl-C, as a terminal sends it to all of a command's processes."""
    os.killpg(process.pid, signal.SIGINT)


def holders(prefix):
    """The processes that have a file open whose path begins so."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(str(file.readlink()).startswith(prefix) for file in folder.iterdir()):
                yield int(folder.parent.name)


@contextlib.contextmanager
def cluster_of_two(env=os.environ):
    """The address of a Ray cluster of two nodes, which have this environment."""
    for _ in range(STARTS):
        with _started(env) as address:
            if address is not None:
                yield address
                return
    pytest.fail("Ray's cluster does not start")


@contextlib.contextmanager
def _started(env):
    """The address of a cluster, None where it took longer to start than Ray waits."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.bulk.two_nodes"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=ROOT, env={**env, **LOOPBACK}, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process.stdout.readline().strip() or None
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
