"""A flow model in Python: flows in, verdicts, probabilities, embeddings and attention out, as the service has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Checkpoint
from tapline.models.encode import TokenBatch, encode
from tapline.models.flow import Flow
from tapline.models.verdict import Verdict, context_terms, flow_probabilities
from tapline.service.engines.engine import AttentiveEngine, Engine, EngineError
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_network import FlowNetwork
from tapline.service.python.arguments import check_truth, flows_of
from tapline.service.python.loaded_model import LoadedModel
from tapline.service.python.offline import Result

BATCH_FLOWS = 512
"""Flows that are computed together, however many are given: memory is bounded by it."""


@dataclass(frozen=True, slots=True)
class FlowAttention:
    """Where the model looked at a flow: weights, float32, that add up to 1 together with `special`.

    They are those of the fusion's two class tokens over all that was read, averaged over the heads and the two tokens.
    `packets` [k]: of the payload lengths that were read, the first k; `orig_bytes` and `resp_bytes`: of the content
    bytes that were read each way; `special`: of the tokens between them. It is correlation, not proof of cause.
    """

    packets: NDArray[np.float32]
    orig_bytes: NDArray[np.float32]
    resp_bytes: NDArray[np.float32]
    special: float


class FlowModel(LoadedModel[Checkpoint]):
    """A flow model that is loaded; `tapline.load` gives it.

    Flows are computed in batches of `BATCH_FLOWS`, however many are given, by `threads` threads (0: one per core);
    several Python threads may ask at a time, and take turns. A flow that the model is not asked about, since nobody
    sent payload or there are fewer packets than the checkpoint's `min_packets`, has the verdict None and NaN for
    probabilities. Of results of `tapline.classify` the flows are taken.
    """

    def __init__(self, engine: Engine, directory: Path, threads: int) -> None:
        self.engine = engine
        super().__init__(engine.checkpoint, directory, threads)
        self._network = FlowNetwork(engine)
        self._classifier = Classifier(self._network)
        self._terms = context_terms(engine.checkpoint)

    @property
    def embedding_size(self) -> int:
        """Numbers in the embedding of a flow."""
        return 2 * self.checkpoint.network.d_model

    def predict(
        self, flows: Iterable[Flow | Result], *, ports: bool = True, cascade: bool = True
    ) -> list[Verdict | None]:
        """The verdict on each flow, in order, None where the model is not asked about it; `ports`: whether ports are
        read, where the model knows any; `cascade`: whether its student answers what it is sure of, where it has one.

        Raises:
            EngineError: the engine failed.
            TypeError: it was given something else than flows.
        """
        check_truth("ports", ports)
        check_truth("cascade", cascade)
        found: list[Verdict | None] = []
        for batch in _batches(flows_of("predict", flows)):
            rows = self._judged(batch)
            verdicts: list[Verdict | None] = [None] * len(batch)
            asked = [batch[row] for row in rows]
            outcomes = self._classifier.classify(asked, [ports] * len(rows), [cascade] * len(rows))
            for row, outcome in zip(rows, outcomes, strict=True):
                verdicts[row] = outcome.verdict if outcome is not None else None
            found += verdicts
        return found

    def predict_proba(
        self, flows: Iterable[Flow | Result], *, ports: bool = True, cascade: bool = True
    ) -> NDArray[np.float64]:
        """Calibrated probabilities, float64 [flows, labels], columns as `labels`, not rounded: the largest of a row,
        rounded to the 6 digits of `CONFIDENCE_DIGITS`, is the confidence of the flow's verdict. Unlikely labels
        have little and not 0. Where the model has a background class, as flow-protocols has, the labels add up
        to less than 1: the rest is what none of them takes. Arguments as of `predict`.

        Raises:
            EngineError: the engine failed.
        """
        check_truth("ports", ports)
        check_truth("cascade", cascade)
        parts = [np.zeros((0, len(self.checkpoint.labels)))]
        for batch in _batches(flows_of("predict_proba", flows)):
            rows = self._judged(batch)
            part = np.full((len(batch), len(self.checkpoint.labels)), np.nan)
            if rows:
                asked = [batch[row] for row in rows]
                logits = self._network.flow_scores(asked, ports=ports, cascade=cascade).logits
                finite = np.flatnonzero(np.isfinite(logits).all(axis=1)).tolist()
                kept = [asked[place] for place in finite]
                shares = flow_probabilities(logits[finite], kept, self.checkpoint, self._terms, ports=ports)
                part[[rows[place] for place in finite]] = shares
            parts.append(part)
        return np.concatenate(parts)

    def embed(self, flows: Iterable[Flow | Result]) -> NDArray[np.float32]:
        """The embedding of each flow, float32 [flows, `embedding_size`]: what the classifying layer of the
        whole network reads, before transport and ports are looked at. A flow of fewer packets than `min_packets` has
        one, too; one without payload has a row of NaN.

        Raises:
            EngineError: the engine failed.
        """
        parts = [np.zeros((0, self.embedding_size), np.float32)]
        for batch in _batches(flows_of("embed", flows)):
            rows = [row for row, flow in enumerate(batch) if flow.payload_lengths]
            part = np.full((len(batch), self.embedding_size), np.nan, np.float32)
            if rows:
                tokens = encode([batch[row] for row in rows], self.checkpoint.features)
                part[rows] = self._network.scores(tokens).embeddings
            parts.append(part)
        return np.concatenate(parts)

    def attention(self, flows: Iterable[Flow | Result]) -> list[FlowAttention | None]:
        """Where the model looked at each flow, None where nobody sent payload.

        Raises:
            EngineError: the engine failed, or does not tell: torch's does not.
        """
        engine = self.engine
        if not isinstance(engine, AttentiveEngine):
            raise EngineError(f"this engine of {self.name} does not tell attention: load it with engine='onnx'")
        found: list[FlowAttention | None] = []
        for batch in _batches(flows_of("attention", flows)):
            rows = [row for row, flow in enumerate(batch) if flow.payload_lengths]
            parts: list[FlowAttention | None] = [None] * len(batch)
            if rows:
                tokens = encode([batch[row] for row in rows], self.checkpoint.features)
                given = self._network.thread.call(partial(engine.attention, tokens))
                for place, (row, shares) in enumerate(zip(rows, given, strict=True)):
                    parts[row] = _attention(tokens, place, shares)
            found += parts
        return found

    def _judged(self, flows: Sequence[Flow]) -> list[int]:
        """The places of the flows that the model is asked about."""
        return [row for row, flow in enumerate(flows) if self._classifier.is_judged(flow)]


def _attention(tokens: TokenBatch, row: int, shares: NDArray[np.float32]) -> FlowAttention:
    """What the tokens of a flow got, without those that stand between them: `[CLS]` lengths `[SEP]`, then `[CLS]`
    originator `[SEP]` responder `[SEP]`."""
    lengths = int(tokens.ps_counts[row])
    types = tokens.bytes_types[tokens.bytes_offsets[row] : tokens.bytes_offsets[row + 1]]
    orig = lengths + len(types) - int(types.sum())  # where the responder's bytes begin: their type is 1
    parts = shares[1 : lengths - 1], shares[lengths + 1 : orig - 1], shares[orig:-1]
    return FlowAttention(*parts, special=float(shares.sum() - sum(part.sum() for part in parts)))


def _batches(flows: Iterator[Flow]) -> Iterator[list[Flow]]:
    while batch := list(islice(flows, BATCH_FLOWS)):
        yield batch
