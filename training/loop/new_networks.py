"""Networks of MM4flow as training takes them: new, from pre-trained encoders, and in training mode."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import FIRST_TOKEN, MAX_LENGTH
from tapline.models.mm4flow import Mm4flow, SelfAttention
from tapline.training.loop.config import TrainingError

LENGTH_WAVES = (4.0, 8.0, 16.0, 64.0, 256.0, 1500.0)
LENGTH_OCTAVES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def order_lengths(model: Mm4flow, seed: int) -> None:
    """Give the embeddings of payload lengths an order: add waves of the length and of its logarithm, mixed at random.

    A length that training never saw then starts near its neighbours instead of nowhere.
    """
    table = model.ps_encoder.bert.embeddings.word_embeddings.weight  # [vocabulary, D]
    lengths = torch.arange(1, MAX_LENGTH + 1, dtype=torch.float32)[:, None]
    phases = torch.cat(
        (
            lengths.log() * (torch.tensor(LENGTH_OCTAVES) * math.pi / 2),
            lengths * (2 * math.pi / torch.tensor(LENGTH_WAVES)),
        ),
        dim=1,
    )
    waves = torch.cat((phases.sin(), phases.cos()), dim=1)  # [1500, W]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for direction in (0, 1):
            mix = torch.randn(waves.shape[1], table.shape[1], generator=generator) * 0.05 * (2 / waves.shape[1]) ** 0.5
            table[FIRST_TOKEN + direction :: 2] += waves @ mix


def new_model(network: Mm4flowNetwork, seed: int, encoders: Mapping[str, Tensor] | None = None) -> Mm4flow:
    """A network to train: random, lengths in order, and pre-trained encoders where they are given.

    Raises:
        TrainingError: the encoders are of another size.
    """
    torch.manual_seed(seed)
    model = Mm4flow(network)
    order_lengths(model, seed)
    if encoders:
        try:
            _, unexpected = model.load_state_dict(encoders, strict=False)
        except RuntimeError as error:
            raise TrainingError(f"pre-trained encoders do not fit: {str(error).splitlines()[-1].strip()}") from None
        if unexpected:
            raise TrainingError(f"pre-trained encoders do not fit this network: unexpected {unexpected[0]}")
    return model


def train_mode(model: nn.Module, *, dropout: bool = True) -> None:
    """Dropout on, but not inside attention, where it would rule out the fused kernel and costs a fifth of the time."""
    model.train()
    for module in model.modules():
        if isinstance(module, SelfAttention) or (isinstance(module, nn.Dropout) and not dropout):
            module.eval()
