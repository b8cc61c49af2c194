"""What was said of labelled flows or traces, thing by thing: the model's verdicts, and what other tools say."""

from __future__ import annotations

from dataclasses import dataclass, field

from tapline.models.verdict import Verdict
from tapline.training.data.label_table import JoinAccount

NAMED_BY = {
    "flow": ("uid", "start_us", "proto", "orig_h", "orig_p", "resp_h", "resp_p"),
    "trace": ("subject", "start_us", "end_us"),
}
"""By what a thing of each unit is named, beside its capture."""


@dataclass
class ToolSaid:
    """What another tool says of each thing in order, by its own word; None where it has no row for it."""

    name: str
    words: list[str | None] = field(default_factory=list)
    account: JoinAccount = field(default_factory=JoinAccount)
    rows: int = 0
    malformed: int = 0


@dataclass
class Said:
    """What was said of n things that bear a label, `unit` being `flow` or `trace`, and what became of all others.

    Of each thing in order: its id (`data.store.id_of`), names (`NAMED_BY`), capture as `corpus/capture`, label as the
    checkpoint calls it, and the verdict; of flows of checkpoints with ports also the verdict without ports.
    `captures_read`: captures in all; `left_out`: things without a label or verdict by reason, `warnings` by capture.
    """

    unit: str
    ids: list[int] = field(default_factory=list)
    names: list[tuple[str | int, ...]] = field(default_factory=list)
    captures: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    without_ports: list[Verdict] = field(default_factory=list)
    suspicious: list[bool | None] = field(default_factory=list)
    tools: list[ToolSaid] = field(default_factory=list)
    captures_read: int = 0
    account: JoinAccount = field(default_factory=JoinAccount)
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, things: int = 1) -> None:
        """Count what is not measured."""
        if things:
            self.left_out[reason] = self.left_out.get(reason, 0) + things
