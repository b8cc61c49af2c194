"""Masked-token pre-training of one encoder on unlabelled flows. Drawing and batching belong to `training.batches`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.encode import FIRST_TOKEN, MASK
from models.mm4flow import MaskedEncoder

SELECTED = 0.2
"""Share of tokens to predict; of these 80 % read `[MASK]`, 10 % a random token, 10 % what they are."""


@dataclass(frozen=True)
class Masked:
    """`tokens` int64 [B, S] with some hidden; `selected` bool [B, S] says which are to be predicted."""

    tokens: Tensor
    selected: Tensor


def mask_tokens(tokens: Tensor, vocabulary: int, share: float, generator: torch.Generator) -> Masked:
    """Hide a share of the real tokens as BERT does (Devlin et al., NAACL 2019); special tokens stay."""
    draw = torch.rand(tokens.shape, generator=generator)
    selected = (tokens >= FIRST_TOKEN) & (draw < share)
    how = torch.rand(tokens.shape, generator=generator)
    strange = torch.randint(FIRST_TOKEN, vocabulary, tokens.shape, generator=generator)
    hidden = torch.where(how < 0.8, MASK, torch.where(how < 0.9, strange, tokens))
    return Masked(torch.where(selected, hidden, tokens), selected)


def masked_token_loss(encoder: MaskedEncoder, tokens: Tensor, types: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the hidden tokens; 0 when none was drawn."""
    vocabulary = encoder.cls.predictions.decoder.out_features
    masked = mask_tokens(tokens, vocabulary, SELECTED, generator)
    hidden = encoder(masked.tokens, types)[masked.selected]  # [N, D]
    if not len(hidden):
        return hidden.sum()
    return functional.cross_entropy(encoder.cls.predictions(hidden), tokens[masked.selected])
