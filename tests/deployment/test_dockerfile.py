"""The Dockerfile: stages of the GPU are those of the CPU but for extras, and libraries come by themselves."""

import re
import subprocess
import sys
import tomllib

from tests.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = dict(re.findall(r"(?m)^FROM \S+ AS (\S+)\n((?:(?!FROM ).*\n)*)", DOCKERFILE))


def instructions(stage):
    return [line for line in STAGES[stage].splitlines() if line and not line.startswith(("#", "CMD"))]


def test_the_gpu_image_differs_by_its_extras_alone():
    """So that what is built and run of one holds for the other, which takes gigabytes."""
    for name in ("libraries-cpu", "own-cpu", "cpu"):
        of_cpu = [re.sub(r"\bcpu\b", "gpu", line) for line in instructions(name)]
        of_cpu = [line.replace("requirements.py gpu", "requirements.py gpu torch") for line in of_cpu]
        assert of_cpu == instructions(name.replace("cpu", "gpu"))


def test_builders_that_make_every_stage_up_to_the_target_make_no_gpu_stage_for_the_cpu():
    order = list(STAGES)
    assert order.index("cpu") < order.index("libraries-gpu")


def test_requirements_are_those_of_the_package_with_extras():
    command = [sys.executable, "deploy/requirements.py", "kafka", "ui"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert said == [*project["dependencies"], *extras["kafka"], *extras["ui"]]


def test_what_is_copied_is_let_through():
    """The context holds nothing but what .dockerignore names."""
    let_through = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        source
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == let_through
