"""The package installed with zkg into a Zeek of one's own, as a user would; with a compiler on PATH or without."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.paths import ROOT

INSTALL_SECONDS = 600
COMPILERS = ("c++", "cc", "CC", "g++", "gcc", "clang", "clang++")


def path_without(programs, folder):
    """A PATH like this one's without some programs: links below `folder` stand for a directory that has one."""
    places = []
    for number, place in enumerate(map(Path, os.environ["PATH"].split(os.pathsep))):
        if any((place / program).exists() for program in programs):
            links = folder / str(number)
            links.mkdir(parents=True)
            for program in place.iterdir():
                if program.name not in programs:
                    (links / program.name).symlink_to(program)
            place = links
        places.append(str(place))
    return os.pathsep.join(places)


def environment_with(path):
    """This process's environment with another PATH, and without what may name compilers or plugins."""
    left_out = ("CC", "CXX", "ZEEKPATH", "ZEEK_PLUGIN_PATH")
    return {**{name: value for name, value in os.environ.items() if name not in left_out}, "PATH": path}


def install(folder, name="tapline", path=os.environ["PATH"]):
    """Install the package, from a repository in a directory `name`, into a state of zkg's own below `folder`, with the
    programs on `path`; gives the environment in which Zeek finds it."""
    repository = folder / "sources" / name
    repository.mkdir(parents=True)
    shutil.copy(ROOT / "zkg.meta", repository)
    shutil.copytree(ROOT / "zeek", repository / "zeek", ignore=shutil.ignore_patterns(".tmp", "tests", "build"))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=repository, check=True)
    places = {place: folder / "zkg" / place for place in ("state_dir", "script_dir", "plugin_dir", "bin_dir")}
    places["script_dir"] = folder / "zkg" / "site"
    for place in places.values():
        place.mkdir(parents=True)
    config = folder / "zkg" / "config"
    config.write_text("[sources]\n[paths]\n" + "".join(f"{key} = {place}\n" for key, place in places.items()))
    zkg, environment = ["zkg", "--configfile", str(config)], environment_with(path)
    subprocess.run(
        [*zkg, "install", "--force", "--skiptests", str(repository)],
        env=environment, check=True, timeout=INSTALL_SECONDS,
    )  # fmt: skip
    exports = subprocess.run(
        [*zkg, "env"], env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    set_up = subprocess.run(
        ["sh", "-c", f"{exports}\nenv -0"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    return dict(line.split("=", 1) for line in set_up.split("\0") if line)
