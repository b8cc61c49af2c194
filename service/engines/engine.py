"""The protocol that every engine of flow checkpoints fulfils, and what it gives. Loading one belongs to `loading`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Checkpoint
from tapline.models.encode import TokenBatch
from tapline.models.student import StudentModel

EngineName = Literal["onnx", "torch"]
Precision = Literal["float32", "bfloat16", "int8"]
"""What an engine computes with: float32 by any, int8 by ONNX Runtime, bfloat16 by torch."""

Ports = Literal["on", "off"]
"""Whether verdicts read ports, where the model knows any."""

Cascade = Literal["on", "off"]
"""Whether the student of a flow model answers the flows that it is sure of, where the model has one."""

GPU_PROVIDER = "CUDAExecutionProvider"
"""ONNX Runtime's name of what computes on a GPU of NVIDIA."""


class EngineError(RuntimeError):
    """An engine cannot be had or cannot run a checkpoint; the message says what to do."""


@dataclass(frozen=True)
class Scores:
    """What an engine computes for n flows: logits float32 [n, classes] and embeddings float32 [n, 2 width].

    `padding_tokens` were computed beside the real ones.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    padding_tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """What one batch cost, encoding and computing, for the histograms; `answered_flows` by the student."""

    encode_seconds: float
    compute_seconds: float
    tokens: int
    padding_tokens: int
    lengths_out_of_vocabulary: int
    answered_flows: int = 0

    def plus(self, other: Timing) -> Timing:
        """What both cost together."""
        return Timing(
            self.encode_seconds + other.encode_seconds,
            self.compute_seconds + other.compute_seconds,
            self.tokens + other.tokens,
            self.padding_tokens + other.padding_tokens,
            self.lengths_out_of_vocabulary + other.lengths_out_of_vocabulary,
            self.answered_flows + other.answered_flows,
        )


class Engine(Protocol):
    """Runs one checkpoint. A flow's scores do not depend on the flows beside it, to rounding.

    `provider` is what computes: an execution provider of ONNX Runtime, or torch's device; a simulated device says so.
    `student` is that of the checkpoint, where it has one, the same by any engine; `run` knows nothing of it.
    """

    checkpoint: Checkpoint
    provider: str
    student: StudentModel | None

    def run(self, batch: TokenBatch) -> Scores:
        """Scores of every flow of the batch, in its order."""
        ...


@runtime_checkable
class AttentiveEngine(Engine, Protocol):
    """An engine that also tells where the network looked."""

    def attention(self, batch: TokenBatch) -> list[NDArray[np.float32]]:
        """Of every flow of the batch, in its order, the attention of the fusion's two class tokens, averaged over heads
        and both: float32 [ps tokens + bytes tokens of the flow], in this order, which adds up to 1.

        Raises:
            EngineError: the checkpoint's graph does not tell.
        """
        ...
