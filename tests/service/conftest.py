"""A fake engine, for tests of what stands around engines."""

import threading

import numpy as np
import pytest

from tapline.models.checkpoint import read_checkpoint
from tapline.service.engines.engine import Scores


class FakeEngine:
    """Scores every flow alike; records batches; can be held, and fails on flows of one length."""

    def __init__(self, checkpoint, poison=None):
        self.checkpoint = checkpoint
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
