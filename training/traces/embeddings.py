"""The other flow encoder: MM4flow's embedding of payload lengths, as shipped or tuned on the labels of traces.

Content bytes are left out, so that the comparison is on what headers show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.checkpoint import WEIGHTS, Checkpoint, read_checkpoint
from models.encode import Mm4flowFeatures
from models.flow import Flow
from models.mm4flow import Mm4flow
from training.batches import Augmentation, draw_weights, plain_batches, training_batches
from training.files import load_weights
from training.loop import Trainer
from training.traces.aggregate import TraceFeatures, gather_features
from training.traces.config import Phase, TraceTrainingConfig
from training.traces.data import TraceCorpus, flows_of

CHECKPOINT = Path(__file__).parents[2] / "models" / "zoo" / "flow-protocols" / "1"
TUNE = Phase(20, 4096, 32, 2e-3)
DISTURB = Augmentation(
    prefix=0.15, no_content=0.0, one_way=0.0, swap=0.0, mask_bytes=0.0, random_bytes=0.0, mask_lengths=0.1,
    jitter_lengths=0.02,
)  # fmt: skip
BATCH_FLOWS = 64


def mm4flow_features(
    corpus: TraceCorpus, train: NDArray[np.int64], config: TraceTrainingConfig, how: Literal["frozen", "tuned"]
) -> list[TraceFeatures]:
    """Features of all traces, float32 [1, k, 2 width], by an embedding tuned on the traces `train` or not at all."""
    checkpoint = read_checkpoint(CHECKPOINT, (WEIGHTS,))
    features = Mm4flowFeatures(checkpoint.features.payload_lengths, 0)
    model = _load(checkpoint, len(corpus.labels))
    if how == "tuned":
        model = _tune(model, corpus, train, features, config)
    flows = [_without_content(flow) for flow in flows_of(corpus.traces)]
    return gather_features([trace.trace for trace in corpus.traces], [embed(model, flows, features)])


def _load(checkpoint: Checkpoint, classes: int) -> Mm4flow:
    weights = load_weights(CHECKPOINT / WEIGHTS)
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    model = Mm4flow(msgspec.structs.replace(checkpoint.network, n_class=classes))
    model.load_state_dict(kept, strict=False)
    return model


def _tune(
    model: Mm4flow,
    corpus: TraceCorpus,
    train: NDArray[np.int64],
    features: Mm4flowFeatures,
    config: TraceTrainingConfig,
) -> Mm4flow:
    """Phase 0.5: a flow takes the label of its trace."""
    traces = [corpus.traces[row] for row in train]
    owner = np.repeat(train, [len(trace.trace.flows) for trace in traces])
    truth = torch.from_numpy(corpus.truth[owner])
    weights = draw_weights(corpus.truth[owner], owner, 0.0, config.capture_power)
    flows = [_without_content(flow) for flow in flows_of(traces)]
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    trainer = Trainer(model, config.loop(TUNE), TUNE.epochs * math.ceil(TUNE.draws / TUNE.batch))
    model.train()
    for _ in range(TUNE.epochs):
        for batch in training_batches(flows, weights, TUNE.draws, TUNE.batch, features, DISTURB, rng):
            logits = model(batch.ps_tokens, batch.bytes_tokens, batch.bytes_types).logits
            trainer.step(functional.cross_entropy(logits, truth[batch.rows], label_smoothing=config.label_smoothing))
    return trainer.mean


@torch.inference_mode()
def embed(model: Mm4flow, flows: Sequence[Flow], features: Mm4flowFeatures) -> NDArray[np.float32]:
    """The embedding of every flow in order, float32 [n, 2 width]."""
    model.eval()
    made = np.zeros((len(flows), model.get_parameter("classifier.0.weight").shape[1]), np.float32)
    for batch in plain_batches(flows, BATCH_FLOWS, features):
        made[batch.rows] = model(batch.ps_tokens, batch.bytes_tokens, batch.bytes_types).embedding.numpy()
    return made


def _without_content(flow: Flow) -> Flow:
    return msgspec.structs.replace(flow, orig_bytes=b"", resp_bytes=b"", heads=[])
