"""What a kind of output has to know: how to send one batch. When to, and what becomes of it, `delivery` decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tapline.service.sinks.output_queue import Record


class AwayError(Exception):
    """A batch could not be sent now; the message says why, for an operator, and holds nothing of the records.

    `rest`: the records that did not arrive, where some did; None where it may be any of them. Nobody wants to be asked
    again before `retry_after_seconds`.
    """

    def __init__(self, reason: str, rest: Sequence[Record] | None = None, retry_after_seconds: float = 0) -> None:
        super().__init__(reason)
        self.rest = rest
        self.retry_after_seconds = retry_after_seconds


class Sender(Protocol):
    """Sends batches, in one thread. A batch has at most `batch_records` records and `batch_bytes` bytes of them, and is
    waited for, from its first record on, for `gather_seconds`."""

    batch_records: int
    batch_bytes: int
    gather_seconds: float

    def send(self, records: Sequence[Record]) -> Sequence[Record]:
        """Send records, within a time of its own; those that will never be taken, whenever they are sent.

        Raises:
            AwayError: they could not be sent now.
        """
        ...

    def probe(self) -> None:
        """See whether the other side is there, sending it nothing, within the same time.

        Raises:
            AwayError: it is not.
        """
        ...

    def reopen(self) -> None:
        """Let go of what is open, and open it anew when next needed: somebody has put another in its place."""
        ...

    def close(self) -> None:
        """Let go of what is open, for good."""
        ...


def reason_of(error: OSError) -> str:
    """What went wrong with a file or a connection, in a few words."""
    return (error.strerror or "").lower() or str(error) or type(error).__name__
