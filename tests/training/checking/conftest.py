"""What is served of the capture that flow checkpoints are evaluated on."""

import csv
import io

import pytest

from tests.service.command.cli_runner import tapline
from tests.training.checking.flow_checks import CAPTURE


@pytest.fixture(scope="session")
def served_flows():
    """What `tapline classify` says of the capture, a row for each flow."""
    result = tapline("classify", CAPTURE, "--format", "csv", "--show", "flows")
    return [row for row in csv.DictReader(io.StringIO(result.stdout)) if row["label"]]
