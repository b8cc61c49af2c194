"""What the model says of a flow that is shown to it in part: the same flow, other things hidden.

It shows what went together with the verdict for this model and this flow; it proves no cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from tapline.models.flow import Flow, FlowError, check_flow
from tapline.models.verdict import Verdict
from tapline.service.history.past import PastFlow
from tapline.service.inference.batcher import Batcher

NOTE = (
    "The same flow, shown to the model in part. It says what went together with the verdict, not what caused it; "
    "content is cut where the packets shown would end, as if all had come in order."
)
FIRST_PACKETS = (1, 2, 4, 8, 16, 32)

_SAME = [name for name in PastFlow.__struct_fields__ if name in Flow.__struct_fields__]


@dataclass(frozen=True)
class Part:
    """What is shown of the flow, in words, and what the model then says; None where it says nothing of so little."""

    shown: str
    verdict: Verdict | None


async def what_if(past: PastFlow, batcher: Batcher) -> list[Part]:
    """Ask the model about parts of a flow.

    Raises:
        QueueFullError, VerdictError: as of `Batcher.classify`.
        FlowError: what was kept of the flow is not enough to ask.
    """
    flow = as_flow(past)
    parts = list(_parts(flow))
    kept = [part for _, part in parts]
    found = await batcher.classify([*kept, flow], urgent=False)
    without_port = await batcher.classify([flow], urgent=False, ports=False)
    names = [name for name, _ in parts] + ["all of it", "all of it, without the port"]
    return [
        Part(name, outcome.verdict if outcome is not None else None)
        for name, outcome in zip(names, [*found, *without_port], strict=True)
    ]


def as_flow(past: PastFlow) -> Flow:
    """The flow that was kept, without packet heads.

    Raises:
        FlowError: it has no payload lengths.
    """
    fields = {name: getattr(past, name) for name in _SAME if name not in ("orig_bytes", "resp_bytes")}
    if not past.payload_lengths:
        raise FlowError("of this flow no payload lengths were kept")
    return check_flow(
        Flow(**fields, orig_bytes=bytes.fromhex(past.orig_bytes), resp_bytes=bytes.fromhex(past.resp_bytes))
    )


def _parts(flow: Flow) -> Iterator[tuple[str, Flow]]:
    count = len(flow.payload_lengths)
    for packets in FIRST_PACKETS:
        if packets < count:
            yield (
                f"the first {packets} packets with payload" if packets > 1 else "the first packet",
                first(flow, packets),
            )
    if flow.orig_bytes or flow.resp_bytes:
        yield "payload lengths alone", msgspec.structs.replace(flow, orig_bytes=b"", resp_bytes=b"")
    if flow.orig_bytes and flow.resp_bytes:
        yield "without the server's bytes", msgspec.structs.replace(flow, resp_bytes=b"")
        yield "without the client's bytes", msgspec.structs.replace(flow, orig_bytes=b"")


def first(flow: Flow, packets: int) -> Flow:
    """The flow as it was after so many packets with payload."""
    lengths = flow.payload_lengths[:packets]
    up = [length for length in lengths if length > 0]
    down = [-length for length in lengths if length < 0]
    return msgspec.structs.replace(
        flow, payload_lengths=lengths, up=len(up), down=len(down),
        orig_bytes=flow.orig_bytes[: sum(up)], resp_bytes=flow.resp_bytes[: sum(down)],
    )  # fmt: skip
