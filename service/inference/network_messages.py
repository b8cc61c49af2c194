"""What travels between a service and the process of a flow network: flows there, what was said of them back.

Messages are msgpack, each after its length. Both ends are of one version of tapline and trust each other: who could
write here could as well write to the memory of either.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from socket import socket
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import Flow
from tapline.models.packed_packets import LENGTH_BYTES, PackedLengths, pack_lengths
from tapline.models.verdict import Verdict
from tapline.service.engines.devices import FIRST_GPU, Device
from tapline.service.engines.engine import EngineName, Precision, Timing

_SIZE = struct.Struct(">I")
_LENGTHS, _HEADS = map(Flow.__struct_fields__.index, ("payload_lengths", "heads"))


class NetworkRecipe(msgspec.Struct, frozen=True):
    """What the process loads, in JSON its only argument, and where that computes."""

    directory: str
    engine: EngineName
    threads: int
    precision: Precision = "float32"
    device: Device = FIRST_GPU


class Ready(msgspec.Struct, tag="ready"):
    """The process has loaded the network and run it; `provider` is what computes."""

    provider: str


class Refused(msgspec.Struct, tag="refused"):
    """It cannot: an `EngineError`, or where the checkpoint is at fault a `CheckpointError`, of these words."""

    reason: str
    by_checkpoint: bool = False


class Said(msgspec.Struct, tag="said"):
    """`Judged` of a batch; embeddings float32, row after row."""

    verdicts: list[Verdict | None]
    embeddings: bytes
    timing: Timing

    def rows(self) -> NDArray[np.float32]:
        """The embeddings, float32 [flows, 2 width]."""
        return np.frombuffer(self.embeddings, np.float32).reshape(len(self.verdicts), -1)


Answer = Ready | Refused | Said

_ASKED: msgspec.msgpack.Decoder[tuple[list[list[Any]], list[bool], list[bool], bool]] = msgspec.msgpack.Decoder(
    tuple[list[list[Any]], list[bool], list[bool], bool]
)
_ANSWER: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_ENCODER = msgspec.msgpack.Encoder()


def pack_batch(flows: Sequence[Flow], ports: Sequence[bool], cascade: Sequence[bool], *, with_scores: bool) -> bytes:
    """A batch, arguments as of `Network.judge`. Packet heads stay here: no flow network reads them."""
    rows = []
    for flow in flows:
        row = list(msgspec.structs.astuple(flow))
        row[_LENGTHS], row[_HEADS] = pack_lengths(flow.payload_lengths).packed, ()
        rows.append(row)
    return _ENCODER.encode((rows, ports, cascade, with_scores))


def unpack_batch(body: bytes) -> tuple[list[Flow], list[bool], list[bool], bool]:
    """The arguments of `pack_batch`."""
    rows, ports, cascade, with_scores = _ASKED.decode(body)
    for row in rows:
        row[_LENGTHS] = PackedLengths(len(row[_LENGTHS]) // LENGTH_BYTES, row[_LENGTHS])
    return [Flow(*row) for row in rows], ports, cascade, with_scores


def pack_answer(answer: Answer) -> bytes:
    """An answer, or that there is none."""
    return _ENCODER.encode(answer)


def unpack_answer(body: bytes) -> Answer:
    """The argument of `pack_answer`.

    Raises:
        msgspec.DecodeError: the other side is no process of a network.
    """
    return _ANSWER.decode(body)


def send(connection: socket, body: bytes) -> None:
    """Send a message.

    Raises:
        OSError: the other side has gone, or takes nothing within the timeout of the socket.
    """
    connection.sendall(_SIZE.pack(len(body)) + body)


def receive(connection: socket) -> bytes | None:
    """The next message, however long that takes; None where the other side has gone."""
    head = _exactly(connection, _SIZE.size)
    return _exactly(connection, _SIZE.unpack(head)[0]) if head is not None else None


def _exactly(connection: socket, size: int) -> bytes | None:
    found, left = bytearray(size), size
    while left:
        try:
            count = connection.recv_into(memoryview(found)[-left:])
        except OSError:
            return None
        if not count:
            return None
        left -= count
    return bytes(found)
