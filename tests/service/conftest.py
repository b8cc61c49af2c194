"""A fake engine, for tests of what stands around engines, and trace checkpoints with random weights: of the packet
encoder, on the random flow checkpoint's embeddings, with an MM4flow of their own, and without an encoder."""

import threading

import numpy as np
import pytest

from tapline.models.checkpoint import WEIGHTS, EarlyVerdict, FlowCheckpoint, file_sha256, read_checkpoint
from tapline.models.trace import TraceSettings
from tapline.service.engines.engine import Scores
from tests.conftest import make_trace_checkpoint

SETTINGS = TraceSettings(subject="mac", window_seconds=20, max_flows=16)


class FakeEngine:
    """Scores every flow alike; records batches; can be held, and fails on flows of one length."""

    def __init__(self, checkpoint, poison=None):
        self.checkpoint = checkpoint
        self.student = None
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.poison = poison

    def run(self, batch):
        self.gate.wait(10)
        self.batches.append(len(batch))
        if self.poison is not None and self.poison in batch.ps_counts:
            raise RuntimeError("engine fault")
        return Scores(np.tile(np.float32([5, 0, 0]), (len(batch), 1)), np.zeros((len(batch), 64), np.float32))


@pytest.fixture
def engine(checkpoint_dir):
    return FakeEngine(read_checkpoint(checkpoint_dir))


@pytest.fixture(scope="session")
def mac_traces_dir(tmp_path_factory):
    """Traces by MAC in windows of 20 seconds."""
    directory = tmp_path_factory.mktemp("repository") / "random-tracegram" / "1"
    return make_trace_checkpoint(directory, trace=SETTINGS, early=EarlyVerdict(0.0, 2))


@pytest.fixture(scope="session")
def embedding_traces_dir(tmp_path_factory, checkpoint_dir):
    """The same on the embeddings of the flow network."""
    directory = tmp_path_factory.mktemp("repository") / "random-mm4flow" / "1"
    return make_trace_checkpoint(
        directory,
        encoder="mm4flow",
        width=64,
        trace=SETTINGS,
        flow_checkpoint=FlowCheckpoint("random", "1", file_sha256(checkpoint_dir / WEIGHTS)),
    )


@pytest.fixture(scope="session")
def own_traces_dir(tmp_path_factory):
    """The same with an MM4flow of its own, which reads 64 payload lengths and no content."""
    directory = tmp_path_factory.mktemp("repository") / "random-own" / "1"
    return make_trace_checkpoint(directory, encoder="own", width=64, trace=SETTINGS)


@pytest.fixture(scope="session")
def context_traces_dir(tmp_path_factory):
    """The same without an encoder: every field of context is read, and nothing else."""
    directory = tmp_path_factory.mktemp("repository") / "random-context" / "1"
    return make_trace_checkpoint(directory, encoder="context", trace=SETTINGS)
