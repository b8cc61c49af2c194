"""One engine for all tests that need one, with the image of two versions."""

import pytest

from tests.deployment.engine import PYTHON, Engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    with Engine(tmp_path_factory.mktemp("engine")) as engine:
        engine.make_base(f"python:{PYTHON}", ["python3", "python3-venv", "ca-certificates"])
        engine.build("tapline:1", "0.1.0")
        engine.build("tapline:2", "0.1.1")
        yield engine
