"""Two services on shards of four sensors, one PostgreSQL: one is killed, one restarted, a sensor too; counts add up."""

import pytest

from tests.fleet.run import fleet
from tests.service.history import postgres

pytestmark = [pytest.mark.postgres, pytest.mark.whole, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_fleet_accounts_for_every_flow(tmp_path):
    if not postgres.BINARIES:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    with postgres.server() as server:
        report = fleet(tmp_path, server.database(), seconds=2)
    assert not report.wrong, "\n".join(report.lines)
