"""The flow encoder that costs nothing: the embedding of the flow checkpoint as it ships, of payload lengths alone.

Content bytes are left out, so that the comparison is on what headers show.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from tapline.installation import PACKAGE
from tapline.models.checkpoint import WEIGHTS, read_checkpoint
from tapline.models.encode import Mm4flowFeatures
from tapline.models.mm4flow import Mm4flow
from tapline.models.trace_context import Field
from tapline.training.data.batches import plain_batches
from tapline.training.data.labelled_traces import TraceCorpus, flows_of
from tapline.training.loop.run_files import load_weights
from tapline.training.traces.features import TraceFeatures, gather_features
from tapline.training.traces.packet_encoder import FlowLearner, flow_features
from tapline.training.traces.trace_config import TraceTrainingConfig

CHECKPOINT = max((PACKAGE / "models" / "zoo" / "flow-protocols").glob("[0-9]*"), key=lambda version: int(version.name))
"""The newest that ships."""

BATCH_FLOWS = 64


def flow_embedding_width() -> int:
    """Numbers in the embedding of the flow checkpoint that ships."""
    return 2 * read_checkpoint(CHECKPOINT, (WEIGHTS,)).network.d_model


@torch.inference_mode()
def frozen_features(corpus: TraceCorpus, fields: Sequence[Field]) -> list[TraceFeatures]:
    """Features of all traces, float32 [1, k, 2 width]."""
    checkpoint = read_checkpoint(CHECKPOINT, (WEIGHTS,))
    model = Mm4flow(checkpoint.network)
    model.load_state_dict(load_weights(CHECKPOINT / WEIGHTS), strict=False)
    model.eval()
    flows = [msgspec.structs.replace(flow, orig_bytes=b"", resp_bytes=b"") for flow in flows_of(corpus.traces)]
    made = np.zeros((len(flows), 2 * checkpoint.network.d_model), np.float32)
    lengths = Mm4flowFeatures(checkpoint.features.payload_lengths, 0)
    for batch in plain_batches(flows, BATCH_FLOWS, lengths):
        made[batch.rows] = model(batch.ps_tokens, batch.bytes_tokens, batch.bytes_types).embedding.numpy()
    return gather_features([trace.trace for trace in corpus.traces], [made], fields)


def encode_traces(corpus: TraceCorpus, learner: FlowLearner, config: TraceTrainingConfig) -> list[TraceFeatures]:
    """Features of all traces, and of disturbed copies of their flows."""
    flows = flows_of(corpus.traces)
    rng = np.random.default_rng([config.seed, 3])
    views = [flow_features(learner.encoder, flows, config.features)]
    for _ in range(config.trace_augmentation.views):
        views.append(flow_features(learner.encoder, flows, config.features, (config.flow_augmentation, rng)))
    return gather_features([trace.trace for trace in corpus.traces], views, config.network.context)
