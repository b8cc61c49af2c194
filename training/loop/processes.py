"""The processes that train together under `torchrun`, and the device of each. One process is a group of one.

Every process makes the same batches, computes its share of the rows, with the dropout that they have in one process
(`dropout`), and adds up gradients with the others: the result is that of one process with the same batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from tapline.training.loop.config import TrainingError


@dataclass(frozen=True)
class Group:
    """This process among `size`; `autocast` is bfloat16 where the device computes in it, None elsewhere."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: torch.dtype | None = None

    def add_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its sum over the group, in one exchange."""
        if self.size == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=self.device)
        distributed.all_reduce(there, distributed.ReduceOp.MAX)  # a process without rows has no gradient at all
        used = [p for p, needed in zip(parameters, there.tolist(), strict=True) if needed]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used])
        distributed.all_reduce(flat)
        for parameter, gradient in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def add(self, value: float) -> float:
        """The sum of a number over the group."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total)

    def wait(self) -> None:
        """Wait for all processes of the group."""
        if self.size > 1:
            distributed.barrier()

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on this process's device."""
        return tensor.to(self.device, non_blocking=True)


ALONE = Group()


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks, by what `torchrun` set."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """How many processes `torchrun` started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_group(device: Literal["auto", "cpu", "cuda"], threads: int | None = None) -> Iterator[Group]:
    """Join the processes that `torchrun` started (environment `RANK`, `WORLD_SIZE`, `LOCAL_RANK`), or stay alone; each
    computes with so many threads, None: as it did.

    Raises:
        TrainingError: CUDA was asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: no CUDA device, or a torch without CUDA: take --device cpu")
    if threads:
        torch.set_num_threads(threads)
    use_cuda = torch.cuda.is_available() and device != "cpu"
    size = world_size()
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_cuda else torch.device("cpu")
    autocast = torch.bfloat16 if use_cuda and torch.cuda.is_bf16_supported() else None
    if use_cuda:
        torch.cuda.set_device(place)
    if size == 1:
        yield Group(device=place, autocast=autocast)
        return
    distributed.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield Group(distributed.get_rank(), size, place, autocast)
    finally:
        distributed.destroy_process_group()
