"""A reader who types what a page says, block after block, in a folder of his own with captures in it.

He has the environment of this run first on his PATH, a home of his own, and a port of his own in the place of 8000.
"""

import contextlib
import doctest
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.documentation.pages import SHELL, Block
from tests.paths import DATA, ROOT

LONGEST_SECONDS = 240
CAPTURES = ("android.pcap", "telegram_videocall.pcapng")
FOLDERS = ("tests", "models", "zeek", "docs", "deploy", "training", "benchmarks", "service")
_SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_PROMPT = "$ "


class Reader:
    """Runs the blocks of one page; a context manager that ends what runs on."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.namespace: dict[str, object] = {"__name__": "page"}
        self._port = port
        self._running: Running | None = None
        (folder / "captures").mkdir()
        shutil.copy(DATA / "captures" / CAPTURES[0], folder / "capture.pcap")
        for name in CAPTURES:
            shutil.copy(DATA / "captures" / name, folder / "captures")
        for name in FOLDERS:
            (folder / name).symlink_to(ROOT / name)
        for name in (".venv", ".venv-dev"):
            (folder / name).symlink_to(sys.prefix)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupt()

    def read(self, block: Block) -> None:
        """Do what a block says; raises AssertionError where it fails, or says something else than the page."""
        if block.mark == "not run":
            return
        if block.mark == "file":
            self._write(block)
        elif block.language == "python":
            exec(compile(self._own(block.text), str(block), "exec"), self.namespace)
        elif block.language in SHELL:
            self._type(block)

    def _type(self, block: Block) -> None:
        if block.mark == "runs on until":
            self._interrupt()
            screen, terminal = os.openpty()  # what runs on draws on a terminal
            try:
                process = self._start(script(block), terminal)
            finally:
                os.close(terminal)
            self._running = Running(block, process, screen)
            self._running.wait_for(block.said)
            self._let_it_write()
            return
        status = int(block.said) if block.mark == "status" else 0
        for command, wanted in typed(block):
            process = self._start(command)
            said, _ = process.communicate(timeout=LONGEST_SECONDS)
            assert process.returncode == status, f"{block}: status {process.returncode} of\n{command}\n{said}"
            if wanted:
                same = doctest.OutputChecker().check_output(wanted, said.replace(str(self._port), "8000"), _SAME)
                assert same, f"{block}: the page shows\n{wanted}\nand it says\n{said}"

    def _start(self, command: str, output: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", self._own(command)],
            cwd=self.folder, env=self._environment(), text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _let_it_write(self) -> None:
        """Wait until a service, if one is what runs on, has its history written."""
        with contextlib.suppress(urllib.error.URLError):
            for _ in range(100):
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/v1/live", timeout=10) as answer:
                    history = json.load(answer)["history"]
                if not history or not history["pending"]:
                    return
                time.sleep(0.1)  # it tells nobody

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "COLUMNS": "160",
            "TERM": "xterm",
            "OMP_NUM_THREADS": "1",
            "TAPLINE_PORT": str(self._port),
            "TAPLINE_URL": f"http://127.0.0.1:{self._port}",
        }

    def _own(self, text: str) -> str:
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")

    def _write(self, block: Block) -> None:
        path = self.folder / block.said
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._own(block.text))

    def _interrupt(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.interrupt()


class Running:
    """A command that runs on, and what it has written on its screen, the other end of its terminal."""

    def __init__(self, block: Block, process: subprocess.Popen[str], screen: int) -> None:
        self._block, self._process, self._screen = block, process, screen
        self._said = bytearray()
        self._news = threading.Condition()
        self._ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        while not self._ended:
            try:
                more = os.read(self._screen, 1 << 16)
            except OSError:  # nobody has the terminal any more (Linux says EIO)
                more = b""
            with self._news:
                self._said += more
                self._ended = not more
                self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until it has said this; raises AssertionError where it ends, or takes too long."""
        with self._news:
            self._news.wait_for(lambda: self._has(text) or self._ended, LONGEST_SECONDS)
            assert self._has(text), f"{self._block}: never said {text!r}:\n{self._all()}"

    def _has(self, text: str) -> bool:
        return text in " ".join(self._all().split())

    def _all(self) -> str:
        return self._said.decode(errors="replace")

    def interrupt(self) -> None:
        """Ctrl-C, as a reader ends it; raises AssertionError where it does not end well."""
        try:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGINT)
            status = self._process.wait(LONGEST_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it left behind has the terminal, too
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._listener.join()
            os.close(self._screen)
        assert status in (0, 130, -signal.SIGINT), f"{self._block}: status {status}:\n{self._all()}"


def script(block: Block) -> str:
    """All commands of a block of a shell."""
    return "\n".join(command for command, _ in typed(block))


def typed(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with the output that the page shows of it; without prompts it is one script."""
    if not re.search(r"(?m)^\$ ", block.text):
        return [(block.text, "")]
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith(_PROMPT):
            found.append(([line.removeprefix(_PROMPT)], []))
        elif found and found[-1][0][-1].endswith("\\") and not found[-1][1]:
            found[-1][0].append(line.removeprefix("> "))
        elif found:
            found[-1][1].append(line)
    return [("\n".join(lines), "\n".join(shown)) for lines, shown in found]
