"""Flows to outcomes through one engine: the single path that the command line, REST and the live service share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.encode import encode
from models.flow import Flow
from models.verdict import Verdict, verdicts
from service.engines.base import Engine, EngineError

DEFAULT_CHECKPOINT = "flow-protocols"

SPECIAL_TOKENS = 5
"""Tokens of a flow beside its lengths and bytes: two around the lengths, three around the content."""


@dataclass(frozen=True)
class Timing:
    """What one batch cost, for the histograms."""

    encode_seconds: float
    compute_seconds: float
    tokens: int
    padding_tokens: int
    lengths_out_of_vocabulary: int


@dataclass(frozen=True, slots=True)
class FlowOutcome:
    """What one pass over a flow gave: its verdict, and where traces are asked for its embedding, float32 [width].

    `verdict` is None for a flow of too few packets, which only its trace asked about. The embedding is a row of its
    batch's matrix: who keeps it copies it.
    """

    verdict: Verdict | None
    embedding: NDArray[np.float32] | None = None


class Classifier:
    """Classifies batches of flows with a checkpoint; one call at a time per instance."""

    def __init__(self, engine: Engine, *, min_packets: int | None = None, with_scores: bool = False) -> None:
        self.checkpoint = engine.checkpoint
        self.min_packets = self.checkpoint.min_packets if min_packets is None else min_packets
        self.last_timing = Timing(0.0, 0.0, 0, 0, 0)
        self._engine = engine
        self._with_scores = with_scores

    def accepts(self, flow: Flow) -> bool:
        """Whether the flow has enough payload packets to be asked about."""
        return flow.up + flow.down >= self.min_packets and bool(flow.payload_lengths)

    def tokens(self, flow: Flow) -> int:
        """The tokens that the model reads of a flow: what computing it costs."""
        features = self.checkpoint.features
        content = min(len(flow.orig_bytes), features.content_bytes) + min(len(flow.resp_bytes), features.content_bytes)
        return min(len(flow.payload_lengths), features.payload_lengths) + content + SPECIAL_TOKENS

    def classify(self, flows: Sequence[Flow]) -> list[FlowOutcome]:
        """One outcome for each flow, in order.

        Raises:
            EngineError: the engine gave another number of scores than it got flows.
        """
        if not flows:
            return []
        start = time.perf_counter()
        batch = encode(flows, self.checkpoint.features)
        encoded = time.perf_counter()
        scores = self._engine.run(batch)
        if len(scores.logits) != len(flows):
            raise EngineError(f"the engine scored {len(scores.logits)} flows of {len(flows)}")
        found = verdicts(scores.logits, self.checkpoint, with_scores=self._with_scores)
        self.last_timing = Timing(
            encoded - start,
            time.perf_counter() - encoded,
            len(batch.ps_tokens) + len(batch.bytes_tokens),
            scores.padding_tokens,
            batch.lengths_out_of_vocabulary,
        )
        return [
            FlowOutcome(verdict if flow.complete else msgspec.structs.replace(verdict, final=False))
            for flow, verdict in zip(flows, found, strict=True)
        ]
