"""Each test of the history runs on SQLite and on PostgreSQL, where that is installed."""

import pytest

from tests.service.history import postgres


@pytest.fixture(scope="session")
def postgres_server():
    if not postgres.BINARIES:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    with postgres.server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def place(request, tmp_path):
    """What `--history` is given: the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.db'}"
    return request.getfixturevalue("postgres_server").database()
