"""A container engine of the tests' own, on a machine where nothing is set up: Debian's dockerd without bridge and
iptables, whose images lie in a temporary folder, and base images made by debootstrap under the names of public ones."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

PYTHON = "3.11-slim-bookworm"
"""The tag of the base: Debian's own interpreter under the public name."""

DEBIAN_DOCKER = "/usr/bin/docker"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
START_SECONDS = 60


def missing():
    """Why no engine can be had here, or nothing."""
    if os.geteuid() != 0:
        return "an engine of its own needs root"
    needed = {"dockerd": "docker.io", "debootstrap": "debootstrap", DEBIAN_DOCKER: "docker.io"}
    lacking = {package for program, package in needed.items() if shutil.which(program) is None}
    return f"needs Debian's {', '.join(sorted(lacking))}" if lacking else None


needs_engine = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class Engine:
    """A dockerd below `folder`; leave the `with` and it is gone, with its images."""

    def __init__(self, folder):
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"}
        self._daemon = None

    def __enter__(self):
        self._log = (self.folder / "dockerd.log").open("w")
        try:
            self.start()
        except subprocess.CalledProcessError:  # root of a container that may not have one of its own
            said = (self.folder / "dockerd.log").read_text().splitlines()[-1:]
            self.__exit__()
            pytest.skip(f"dockerd does not start here: {''.join(said)[:300]}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        self._log.close()
        shutil.rmtree(self.folder)

    def start(self, *, apart=False):
        """Begin; `apart`: what has this host's network is in one of its own, whose ports nobody else has."""
        own = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"] if apart else []
        self._daemon = subprocess.Popen(
            [
                *own, "dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false",
                "--data-root", self.folder / "data", "--exec-root", self.folder / "exec",
                "--pidfile", self.folder / "pid", "--host", self.host,
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        subprocess.run(
            ["timeout", str(START_SECONDS), "sh", "-c", f"until {DEBIAN_DOCKER} version; do sleep 0.2; done"],
            env=self.environment, check=True, stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def stop(self):
        """End; images and volumes stay until the end of the `with`."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(60)
        for mount in (self.folder / "exec/netns").glob("*"):  # dockerd leaves the one of --network=host
            subprocess.run(["umount", mount], check=False, stderr=subprocess.DEVNULL)

    def inside(self, *command):
        """A command line that runs another in the network that containers have as their host's."""
        return ["nsenter", "--net", "--target", str(self._daemon.pid), *map(str, command)]

    def docker(self, *arguments, check=True, timeout=600, **options):
        """Run docker; gives what it wrote to standard output, without the last line end."""
        done = self.run([DEBIAN_DOCKER, *arguments], timeout=timeout, **options)
        if check and done.returncode:
            raise AssertionError(
                f"docker {' '.join(map(str, arguments[:3]))}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.stdout.rstrip("\n")

    def run(self, command, *, timeout=600, **options):
        """Run a program that speaks to this engine."""
        environment = {**self.environment, **options.pop("env", {})}
        return subprocess.run(
            command, env=environment, timeout=timeout, capture_output=True, text=True, check=False, cwd=ROOT, **options
        )

    def make_base(self, name, packages, changes=()):
        """A Debian image with packages of Debian's, under any name; it trusts whom this machine trusts.

        `BASE_TAR_DIR` names a folder that keeps what debootstrap made for the next time.
        """
        kept = (
            Path(os.environ.get("BASE_TAR_DIR", self.folder)) / f"base-{name.replace('/', '-').replace(':', '-')}.tar"
        )
        if not kept.exists():
            root = self.folder / "root"
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", "bookworm", root],
                check=True, timeout=900, stdout=self._log, stderr=self._log,
            )  # fmt: skip
            (root / BUNDLE.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(BUNDLE, root / BUNDLE.relative_to("/"))
            if (root / "usr/bin/python3").exists():
                (root / "usr/bin/python").symlink_to("python3")
            for useless in ("var/cache/apt/archives", "var/lib/apt/lists"):
                shutil.rmtree(root / useless)
            subprocess.run(["tar", "-C", root, "-cf", kept, "."], check=True, timeout=300)
            shutil.rmtree(root)
        flags = [word for change in (f"ENV PIP_CERT={BUNDLE}", *changes) for word in ("--change", change)]
        self.docker("import", *flags, kept, name)

    def build(self, tag, version):
        """Build the target `cpu` of the repository."""
        arguments = ["--build-arg", f"PYTHON={PYTHON}", "--build-arg", f"VERSION={version}"]
        self.docker("build", "--network=host", *arguments, "--target", "cpu", "--tag", tag, ".", timeout=1500)

    def inspect(self, what):
        """All that the engine knows of an image or container."""
        return json.loads(self.docker("inspect", what))[0]
