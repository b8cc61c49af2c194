"""A PostgreSQL server of Debian's package in a temporary folder, on a Unix socket alone."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
WAIT_SECONDS = 120


def as_user():
    """The user that runs it: PostgreSQL refuses root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


class Server:
    """A server that can be stopped and started."""

    def __init__(self, folder):
        self._folder = folder
        self._user = {**as_user(), "cwd": folder, "check": True, "timeout": WAIT_SECONDS, "stdout": subprocess.DEVNULL}
        self._name = pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() else "postgres"
        self._made = 0
        self._run("initdb", "-A", "trust", "-E", "UTF8", "--locale=C", folder / "data")

    def _run(self, binary, *arguments):
        subprocess.run([BINARIES[-1] / binary, *arguments], **self._user)

    def start(self):
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-l", self._folder / "log", "-o", options, "start")

    def stop(self):
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-m", "immediate", "stop")

    @property
    def pid(self):
        """Of the process that has all others of the server below it."""
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    def database(self):
        """The URL of a new database."""
        self._made += 1
        self._run("createdb", "-h", self._folder, f"history{self._made}")
        return f"postgresql+psycopg://{self._name}@/history{self._made}?host={self._folder}"


@contextlib.contextmanager
def server():
    """A running server."""
    folder = Path(tempfile.mkdtemp(prefix="tapline-postgres-"))
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        found = Server(folder)
        found.start()
        try:
            yield found
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # stopped by a test
                found.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
