"""Requests that schemathesis makes up from the API's own description, over loopback, with a key and without: every
answer is one that the description knows."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from tapline.service.api.limits import CAPTURE_ROUTE, FLOWS_ROUTE, JOBS_ROUTE
from tests.conftest import make_checkpoint
from tests.service.api.served import Server

pytestmark = [pytest.mark.slow, pytest.mark.whole]

EXAMPLES = 12
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,  # one run is like another; more is looked for by `make fuzz`
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def serve(folder, **environment):
    for name, version in (("random", "1"), ("random", "2"), ("other", "1")):
        make_checkpoint(folder / "models" / name / version, name=name, version=version)
    flags = ("--repository", folder / "models", "--model", "random")
    return Server(folder, folder / "models" / "random", *flags, env=environment)


def excluded(operation):
    """Checks that do not hold here: no description says all of what makes a capture, a flow, a time or a network, and
    one good key of two is enough."""
    names = ["ignored_auth"]
    if operation.path in (CAPTURE_ROUTE, FLOWS_ROUTE, JOBS_ROUTE) or operation.path.endswith(
        ("/flows", "/traces", "/alerts")
    ):
        names.append("positive_data_acceptance")
    return CHECKS.get_by_names(names)


def try_all(server, mode, headers):
    """Make requests up for every route, valid or faulty ones; for how many routes there were any."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    schema = schema.exclude(path="/v1/stream")  # which has no end
    return sum(try_one(found.ok(), mode, headers) for found in schema.get_all_operations())


def try_one(operation, mode, headers):
    """Whether there was a request to make."""
    unwanted = excluded(operation)

    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        case.call_and_validate(headers=headers, excluded_checks=unwanted)

    try:
        one()
    except Unsatisfiable:  # nothing can be wrong with a request that has no parameters
        return False
    return True


@pytest.mark.parametrize(("mode", "routes"), [(GenerationMode.POSITIVE, 10), (GenerationMode.NEGATIVE, 4)])
@pytest.mark.parametrize("key", [None, "k3y"])
def test_whatever_the_description_makes_up(tmp_path, mode, routes, key):
    with serve(tmp_path, **({"TAPLINE_API_KEY": key} if key else {})) as server:
        assert try_all(server, mode, {"X-API-Key": key} if key else {}) >= routes
        assert "Traceback" not in server.log, server.log
