"""Flows to outcomes through one engine: the single path that the command line, REST and the live service share."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tapline.models.context import transport_of
from tapline.models.flow import HEAD_TOKEN_COST, Flow, HeadsKind
from tapline.models.packed_packets import LENGTH_BYTES, head_bytes, pack_heads, pack_lengths
from tapline.models.trace_context import ContextColumns
from tapline.models.verdict import Verdict
from tapline.service.engines.engine import Engine, Timing
from tapline.service.engines.thread import EngineStalledError
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.flow_features import FlowFeatures
from tapline.service.inference.flow_network import FlowNetwork, Network
from tapline.service.inference.trace_encoders import trace_encoders
from tapline.service.log_lines import log

DEFAULT_CHECKPOINT = "flow-protocols"

_NOTHING = Timing(0.0, 0.0, 0, 0, 0)

SPECIAL_TOKENS = 5
"""Tokens of a flow beside its lengths and bytes: two around the lengths, three around the content."""


@dataclass(frozen=True, slots=True)
class FlowOutcome:
    """What one pass over a flow gave: its verdict, and what each trace model reads of it.

    `verdict` is None for a flow of too few packets, which only its traces asked about. `features` has an entry for each
    trace model that has what it needs of the flow. `embedding` is the flow network's, float32 [2 width], a row of its
    whole batch's: who keeps it copies it. None where nothing was computed.
    """

    verdict: Verdict | None
    features: tuple[FlowFeatures, ...] = ()
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


class Classifier:
    """Classifies batches of flows with the network of a checkpoint; several threads may ask at a time.

    With `trace_engines` flows that count in traces get what those read of them in the same pass: the embedding that the
    flow network computes anyway, or that of a trace checkpoint's own encoder, once for all engines that share it.
    """

    def __init__(
        self,
        network: Network | Engine,
        *,
        trace_engines: Sequence[TraceEngine] = (),
        min_packets: int | None = None,
        with_scores: bool = False,
        ports: bool = True,
        cascade: bool = True,
    ) -> None:
        """`network`: what judges flows, or its engine, of which it is made here. `ports`: whether verdicts read ports
        where nothing else is asked for; `cascade`: whether, likewise, a student answers what it is sure of, which it
        never does where `with_scores` asks for the network's own numbers, or where traces read its embeddings."""
        self.network = network if isinstance(network, Network) else FlowNetwork(network)
        self.checkpoint = network.checkpoint
        self.min_packets = self.checkpoint.min_packets if min_packets is None else min_packets
        self._timing = threading.local()
        self.ports = ports
        self.with_scores = with_scores
        self.asked_cascade = cascade
        self._read_for(trace_engines)

    def with_traces(self, trace_engines: Sequence[TraceEngine]) -> Classifier:
        """The same with the same network, for other traces."""
        other = copy(self)
        other._read_for(trace_engines)
        return other

    def _read_for(self, trace_engines: Sequence[TraceEngine]) -> None:
        self.trace_engines = list(trace_engines)
        self.encoders = trace_encoders(trace_engines, self.network.timeout_seconds)
        self._reads = [self.checkpoint.features, *(each.reads for each in self.encoders if each.reads is not None)]
        self._reads_heads = sum(each.reads_heads for each in self.encoders)
        self._reads_context = any(each.reads_context for each in self.encoders)
        reads_embeddings = any(each.checkpoint.flow_checkpoint is not None for each in trace_engines)
        self._may_cascade = not (self.with_scores or reads_embeddings)

    def give_up(self) -> None:
        """Wait for no engine any more: what is computed fails now."""
        self.network.close()
        for encoder in self.encoders:
            encoder.thread.close()

    @property
    def last_timing(self) -> Timing:
        """What the last batch took of those that this thread had classified."""
        last: Timing = getattr(self._timing, "last", _NOTHING)
        return last

    @last_timing.setter
    def last_timing(self, timing: Timing) -> None:
        self._timing.last = timing

    @property
    def has_cascade(self) -> bool | None:
        """Whether a student answers flows where nothing else is asked for, None where the checkpoint has none."""
        return None if self.checkpoint.student is None else self._may_cascade and self.asked_cascade

    @property
    def provider(self) -> str:
        """What computes, as of `Engine`."""
        return self.network.provider

    @property
    def heads(self) -> HeadsKind:
        """What sources should keep of packet heads: the most that any trace model needs."""
        asked = {encoder.heads for encoder in self.encoders}
        return "full" if "full" in asked else "header" if asked else "none"

    def accepts(self, flow: Flow) -> bool:
        """Whether there is anything to ask about the flow: its verdict, or its part in a trace."""
        return self.is_judged(flow) or self.is_traced(flow)

    def is_traced(self, flow: Flow) -> bool:
        """Whether the flow counts in traces: of some model that has what it needs of it."""
        return any(encoder.is_traced(flow) for encoder in self.encoders)

    def input_hash(self, flow: Flow) -> int:
        """A hash of what networks and context read of a flow: where it is the same, so is the outcome."""
        lengths = max(read.payload_lengths for read in self._reads)
        content = max(read.content_bytes for read in self._reads)
        reads_heads = self._reads_heads or self._reads_context
        packets = pack_lengths(flow.payload_lengths).packed[: LENGTH_BYTES * lengths]
        heads = pack_heads(flow.heads).packed if reads_heads else b""
        parts = flow.orig_bytes[:content], flow.resp_bytes[:content]
        context = (transport_of(flow), flow.orig_p, flow.resp_p) if self.checkpoint.context is not None else ()
        volume = flow.orig_pkts, flow.resp_pkts, flow.orig_ip_bytes, flow.resp_ip_bytes
        return hash((packets, *parts, heads, context, volume if self._reads_context else ()))

    def is_judged(self, flow: Flow) -> bool:
        """Whether the flow gets a verdict of its own: there is payload, in as many packets as are asked for."""
        return flow.up + flow.down >= self.min_packets and bool(flow.payload_lengths)

    def tokens(self, flow: Flow) -> int:
        """The tokens that the models read of a flow: what computing it costs."""
        lengths, orig_bytes, resp_bytes = len(flow.payload_lengths), len(flow.orig_bytes), len(flow.resp_bytes)
        found = 0
        for read in self._reads:
            content = min(orig_bytes, read.content_bytes) + min(resp_bytes, read.content_bytes)
            found += min(lengths, read.payload_lengths) + content + SPECIAL_TOKENS
        if self._reads_heads:
            found += self._reads_heads * (HEAD_TOKEN_COST * len(flow.heads) + head_bytes(flow.heads))
        return found

    def classify_each(
        self, flows: Sequence[Flow], ports: Sequence[bool] | None = None, cascade: Sequence[bool] | None = None
    ) -> list[FlowOutcome | None]:
        """As `classify`, but whatever the engine raises costs one flow its outcome, and none of the others theirs.

        Raises:
            EngineStalledError: the engine did not answer in time, and would not any sooner for one.
        """
        try:
            return self.classify(flows, ports, cascade)
        except EngineStalledError:
            raise
        except Exception as error:
            if len(flows) > 1:  # halve until the bad one stands alone
                middle = len(flows) // 2
                found = self.classify_each(flows[:middle], ports and ports[:middle], cascade and cascade[:middle])
                before = self.last_timing
                found += self.classify_each(flows[middle:], ports and ports[middle:], cascade and cascade[middle:])
                self.last_timing = before.plus(self.last_timing)
                return found
            log.error("engine failed", error=type(error).__name__, uid=flows[0].uid)
            self.last_timing = _NOTHING
            return [None]

    def classify(
        self, flows: Sequence[Flow], ports: Sequence[bool] | None = None, cascade: Sequence[bool] | None = None
    ) -> list[FlowOutcome | None]:
        """One outcome for each flow, in order; None where the network's numbers for it are not finite.

        `ports` says of each flow whether its ports are read, `cascade` whether a student may answer it, None: of all as
        the classifier was told.

        Raises:
            EngineError: the network failed.
            EngineStalledError: it did not answer in time.
        """
        if not flows:
            return []
        reads = [self.ports] * len(flows) if ports is None else ports
        asked = [self.asked_cascade] * len(flows) if cascade is None else cascade
        asked = asked if self._may_cascade else [False] * len(flows)
        judged = self.network.judge(flows, reads, asked, with_scores=self.with_scores)
        start = time.perf_counter()
        context = ContextColumns(flows)
        encoded_by = [encoder.encode(flows, judged.embeddings, context) for encoder in self.encoders]
        compute_seconds = judged.timing.compute_seconds + time.perf_counter() - start
        self.last_timing = replace(judged.timing, compute_seconds=compute_seconds)
        return [
            FlowOutcome(
                verdict if self.is_judged(flow) else None,
                tuple(each for given in encoded_by for each in given[row]),
                judged.embeddings[row],
            )
            if verdict is not None
            else None
            for row, (flow, verdict) in enumerate(zip(flows, judged.verdicts, strict=True))
        ]
