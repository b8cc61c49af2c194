"""What training tests share: features and traces of nine captures of three devices, features of flows by protocol."""

import pytest

from tapline.training.data.labelled_traces import make_trace_corpus
from tapline.training.data.samples import read_samples
from tapline.training.traces.trace_config import TraceTrainingConfig
from tests.paths import DATA
from tests.training.command import tapline_train

CAPTURES, PROTOCOLS = DATA / "traces", DATA / "protocols"


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "devices"
    tapline_train("extract", CAPTURES, "--label-from-folder", "--heads", "header", "--out", out)
    return out


@pytest.fixture(scope="session")
def protocols(tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "protocols"
    table = PROTOCOLS / "flows.csv"
    tapline_train("extract", PROTOCOLS / "pcap", "--labels", table, "--confidence", "DPI", "--out", out)
    return out


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Traffic of anything but the three devices."""
    out = tmp_path_factory.mktemp("features") / "others"
    tapline_train("extract", PROTOCOLS / "pcap", "--heads", "header", "--out", out)
    return out


@pytest.fixture(scope="session")
def corpus(features):
    return make_trace_corpus(read_samples(features), TraceTrainingConfig().trace)
