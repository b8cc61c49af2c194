"""Dropout by flow: the same whoever computes the flow; another for every step, flow and layer; of the right share."""

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from tapline.models.checkpoint import Mm4flowNetwork, TracegramNetwork
from tapline.models.flow import PacketHead
from tapline.models.packet_tokens import TracegramFeatures
from tapline.training.data.batches import TrainingSet
from tapline.training.data.batches import TrainingSet as FlowSet
from tapline.training.flows.finetune import finetune_stage
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.dropout import UNITS, FlowDropout, by_flow
from tapline.training.loop.new_networks import new_model
from tapline.training.loop.processes import ALONE, Group, join_group
from tapline.training.loop.trainer import Trainer
from tapline.training.traces.packet_encoder import new_learner, pretrain_stage, tune_stage
from tapline.training.traces.trace_config import Phase, TraceTrainingConfig
from tests.conftest import make_flows

CPU = torch.device("cpu")


def kept(rows, flows=11, step=4, seed=1):
    """What each of two layers keeps of ones [n, 3, 5]."""
    model = nn.Sequential(nn.Dropout(0.4), nn.Dropout(0.4)).train()
    draws = by_flow(model, seed, CPU)
    draws.begin(step, flows, np.array(rows))
    return [layer(torch.ones(len(rows), 3, 5)) for layer in model]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_share_of_a_batch_drops_what_the_whole_drops(size):
    whole = kept(range(11))
    for rank in range(size):
        rows = range(rank, 11, size)
        for all_of_it, share in zip(whole, kept(rows), strict=True):
            assert torch.equal(share, all_of_it[list(rows)])


def test_steps_flows_layers_and_seeds_differ():
    first, second = kept(range(11))
    assert not torch.equal(first, second)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 11
    assert not torch.equal(first, kept(range(11), step=5)[0])
    assert not torch.equal(first, kept(range(11), seed=2)[0])


def test_a_share_is_kept_and_the_mean_stays():
    states = kept(range(4 * UNITS), flows=4 * UNITS)[0]
    assert states.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert (states == 0).float().mean() == pytest.approx(0.4, abs=0.05)


def test_nothing_is_dropped_outside_training():
    model = nn.Sequential(nn.Dropout(0.4))
    by_flow(model, 0, CPU)
    assert isinstance(model[0], FlowDropout)
    model.eval()
    assert torch.equal(model(torch.ones(3, 2)), torch.ones(3, 2))


def test_another_number_of_flows_than_announced_is_an_error():
    model = nn.Sequential(nn.Dropout(0.4)).train()
    by_flow(model, 0, CPU).begin(0, 4, np.arange(4))
    with pytest.raises(ValueError, match="dropout of 3 flows, expected 4"):
        model(torch.ones(3, 2))


def packets(stage_of, group=ALONE):
    """A learner, and a batch of five flows to teach it."""
    network = TracegramNetwork(n_class=2, feature_size=16, emb_dim=16, dim=16, depth=1, heads=2, dim_head=8, queries=4)
    config = msgspec.structs.replace(
        TraceTrainingConfig(),
        network=network,
        features=TracegramFeatures(max_tokens=160),
        pretrain=Phase(1, 5, 5, 1e-3),
        tune=Phase(1, 5, 5, 1e-3),
        next_token=0.5,
    )
    heads = [PacketHead(0, bytes(range(n, n + 54))) for n in range(6)]
    flows = [msgspec.structs.replace(flow, heads=heads[: 1 + n % 4]) for n, flow in enumerate(make_flows(12))]
    learner = new_learner(network, 2, 0)
    stage = stage_of(learner, FlowSet(flows, np.arange(12) % 2, np.full(12, 1 / 12)), config, group)
    return learner, stage


def flows_stage(stage_of, group=ALONE):
    """A small MM4flow, and a batch of five flows to teach it."""
    config = TrainingConfig(16, 2, 1, 32, batch_flows=5, draws=5)
    network = Mm4flowNetwork(config.d_model, config.n_layer, config.n_head, config.dim_ff, 2)
    model = new_model(network, 0)
    data = TrainingSet(make_flows(12), np.arange(12) % 2, np.full(12, 1 / 12))
    return model, stage_of("finetune", model, data, config, group)


STAGES = [(packets, pretrain_stage), (packets, tune_stage), (flows_stage, finetune_stage)]


def one_step(make, stage_of, parts=1, group=ALONE):
    model, stage = make(stage_of, group)
    trainer = Trainer(model, TrainingConfig(), 1, group)
    trainer.draws = by_flow(model, 0, CPU)
    stage.mode(model)
    (work,) = stage.works(0)
    assert work.flows == 5
    assert work.tokens < work.computed
    return trainer.work(work, parts), trainer.gradient_norm


@pytest.mark.parametrize(("make", "stage_of"), STAGES)
def test_parts_of_a_batch_teach_what_the_batch_teaches(make, stage_of):
    loss, norm = one_step(make, stage_of)
    for parts in (2, 5):
        assert one_step(make, stage_of, parts) == (pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-4))


@pytest.mark.parametrize(("make", "stage_of"), STAGES)
def test_bfloat16_is_near_float32(make, stage_of):
    whole, half = (one_step(make, stage_of, group=Group(autocast=kind)) for kind in (None, torch.bfloat16))
    assert half != whole
    assert half[0] == pytest.approx(whole[0], rel=0.02)
    assert half[1] == pytest.approx(whole[1], rel=0.1)


def test_bfloat16_is_not_taken_on_a_cpu():
    with join_group("cpu") as group:
        assert group.autocast is None
