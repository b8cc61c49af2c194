"""`tapline.stream`: the live flows of sensors with their verdicts, as an asynchronous iterator."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from types import TracebackType

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT
from tapline.service.python.flow_model import FlowModel


@dataclass(frozen=True, slots=True)
class LiveResult:
    """A live flow with its verdict: early (`verdict.final` is False, `flow.complete` too) or final. Both have the
    flow's `uid`. `source` is the URL of the sensor's bus, without a password."""

    source: str
    flow: Flow
    verdict: Verdict


def stream(
    url: str | Iterable[str],
    *,
    model: str | os.PathLike[str] | FlowModel = DEFAULT_CHECKPOINT,
    ports: bool = True,
    threads: int = 0,
) -> Stream:
    """Live flows of sensors with their verdicts, until you stop: `async for live in tapline.stream(url)`.

    Args:
        url: of a sensor's bus, `ws://host:port`, `wss://host:port` or `broker://host:port`, or of several.
        model: as of `classify`.
        ports: as of `classify`.
        threads: as of `classify`.
    """
    raise NotImplementedError


class Stream:
    """Live flows; iterate it, or use it as an asynchronous context manager, which ends all that it started."""

    def __aiter__(self) -> AsyncIterator[LiveResult]:
        raise NotImplementedError

    async def __aenter__(self) -> Stream:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it; what it started has ended when this returns."""
        raise NotImplementedError
