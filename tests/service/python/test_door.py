"""`import tapline` does no work, offers what it says, and its types come through to who uses it."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import tapline
from tests.paths import ROOT

SCRIPT = """
import asyncio
import tapline

for flow in tapline.read("a.pcap", heads="full"):
    reveal_type(flow.payload_lengths)
results = tapline.classify(["a.pcap"], model="flow-protocols", traces=())
for result in results:
    reveal_type(result.verdict)
reveal_type(results.traces)
reveal_type(results.to_pandas())
reveal_type(tapline.load("flow-protocols").predict_proba([]))
reveal_type(tapline.load("iot-devices").traces([]))
reveal_type(tapline.load("directory"))


async def watch() -> None:
    async with tapline.stream("ws://sensor:27759") as live:
        async for each in live:
            reveal_type(each)


asyncio.run(watch())
tapline.read(7)
tapline.nothing
"""
REVEALED = [
    "Sequence[int]",
    "Verdict | None",
    "Traces",
    "DataFrame",
    "ndarray[tuple[Any, ...], dtype[float64]]",
    "list[Trace]",
    "FlowModel | TraceModel",
    "LiveResult",
]


def run(code):
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_importing_loads_nothing():
    loaded = run("import sys; import tapline; print(*sorted(set(sys.modules) - set(sys.stdlib_module_names)))")
    own = {name for name in loaded if name.split(".")[0] == "tapline"}
    assert own == {"tapline"}
    assert not {name.split(".")[0] for name in loaded} & {"numpy", "onnxruntime", "msgspec", "pandas", "pyarrow"}


def test_everything_is_there_and_is_found():
    assert set(tapline.__all__) <= set(dir(tapline))
    for name in tapline.__all__:
        assert getattr(tapline, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tapline.nothing  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    code = "import sys, tapline; print('tapline.installation' in sys.modules, tapline.__version__)"
    assert run(code) == ["False", version("tapline-traffic")]


def test_logs_go_to_standard_error_of_the_moment_unless_the_caller_says_otherwise():
    code = (
        "import contextlib, io, logging, sys, tapline{}; tapline.load('flow-protocols')\n"
        "from tapline.service.log_lines import log\n"
        "with contextlib.redirect_stderr(io.StringIO()) as said:\n    log.error('oops')\n"
        "print(said.getvalue().count('oops'))"
    )
    assert run(code.format("")) == ["1"]
    own = "; logging.getLogger('tapline').addHandler(logging.NullHandler())"
    assert run(code.format(own)) == ["0"]


def test_without_torch_pandas_and_pyarrow():
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("torch", "pandas", "pyarrow"))
    code = (
        f"import sys; {blocked}; import tapline; capture = 'tests/data/captures/android.pcap'\n"
        "print(len(list(tapline.classify(capture))), len(tapline.load('iot-devices').labels))\n"
        "print([*map(callable, (tapline.stream, tapline.read))])"
    )
    assert run(code) == ["66", "31", "[True,", "True]"]


@pytest.mark.slow
@pytest.mark.whole
def test_types_come_through(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    lines = found.stdout.splitlines()
    types = [line.partition('type is "')[2].rstrip('"') for line in lines if "Revealed" in line]
    names = [re.sub(r"(\w+\.)+(?=\w)", "", each).replace("floating[_64Bit]", "float64") for each in types]
    assert names == REVEALED, found
    errors = [line for line in lines if ": error:" in line and "script.py" in line]
    assert len(errors) == 2
    assert 'Argument 1 to "read" has incompatible type "int"' in errors[0]
    assert 'Module has no attribute "nothing"' in errors[1]
