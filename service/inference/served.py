"""The models that serve: loaded, warmed, swapped and unloaded while flows keep coming, each with its own batcher."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from tapline.models.checkpoint import Checkpoint, CheckpointError
from tapline.service.engines.warm_flows import LONG_FLOW, SHORT_FLOW
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import Repository, UnknownModelError
from tapline.service.inference.trace_encoders import TraceEncoder
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.completion import to_its_end


class ModelBusyError(RuntimeError):
    """A model cannot be loaded or unloaded now; the message says why."""


class ServedModels:
    """The loaded models by name; the default one serves the live path and whoever names none.

    `try_out` says whether a checkpoint directory can serve; `load_engines` gives its engines, one for each device.
    """

    def __init__(
        self,
        repository: Repository,
        default: str,
        try_out: Callable[[Path], Awaitable[None]],
        load_engines: Callable[[Path], list[Classifier]],
        make_batcher: Callable[[list[Classifier]], Batcher],
        metrics: Metrics,
    ) -> None:
        self.repository = repository
        self.default = default
        self._try_out = try_out
        self._load_engines = load_engines
        self._make_batcher = make_batcher
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self._running = False
        self._batchers = {default: make_batcher(load_engines(repository.find(default)))}
        self._show(self.batcher().classifier.checkpoint)

    def batcher(self, name: str | None = None) -> Batcher:
        """The batcher of a loaded model, the default one where none is named.

        Raises:
            UnknownModelError: it is not loaded.
        """
        found = self._batchers.get(name or self.default)
        if found is None:
            raise UnknownModelError(
                f"no flow model {(name or '')[:64]} is loaded, only {', '.join(sorted(self._batchers))}"
            )
        return found

    def loaded(self) -> dict[str, Checkpoint]:
        """The checkpoints that serve, by name."""
        return {name: batcher.classifier.checkpoint for name, batcher in self._batchers.items()}

    def providers(self) -> dict[str, str]:
        """What computes each model that serves, by name: as of `Batcher.provider`."""
        return {name: batcher.provider for name, batcher in self._batchers.items()}

    def cascades(self) -> dict[str, bool | None]:
        """Of each model that serves whether a student answers flows, None where it has none, by name."""
        return {name: batcher.classifier.has_cascade for name, batcher in self._batchers.items()}

    @property
    def waiting_flows(self) -> int:
        """Flows in all queues."""
        return sum(batcher.waiting_flows for batcher in self._batchers.values())

    async def start(self) -> None:
        """Warm the default model up and let it serve; call once."""
        await asyncio.to_thread(warm_up, [self.batcher().classifier])
        await asyncio.to_thread(_release_memory)
        for batcher in self._batchers.values():
            batcher.start()
        self._running = True

    async def stop(self, drain_seconds: float) -> None:
        """Drain every model within the limit."""
        self._running = False
        await asyncio.gather(*(batcher.stop(drain_seconds) for batcher in self._batchers.values()))

    async def load(self, name: str, version: str | None = None) -> Checkpoint:
        """Load a version of a model, the newest where none is given, and serve it in place of the loaded one.

        The new one is tried out, and warm before it takes a flow; the old one finishes its batches; flows that wait
        stay in the queue. Whatever is wrong with the new one, the old one goes on.

        Raises:
            UnknownModelError: there is no such model or version.
            CheckpointError, EngineError: it cannot serve.
            ModelBusyError: another model is being loaded or unloaded.
        """
        async with self.changing():
            directory = self.repository.find(name, version)
            await self._try_out(directory)
            classifiers = await asyncio.to_thread(self._warm_engines, directory)
            checkpoint = classifiers[0].checkpoint
            if checkpoint.name != name:
                raise CheckpointError(f"{directory}: holds a model named {checkpoint.name}, expected {name}")
            await to_its_end(self._serve(name, classifiers))
        return checkpoint

    async def _serve(self, name: str, classifiers: list[Classifier]) -> None:
        batcher, checkpoint = self._batchers.get(name), classifiers[0].checkpoint
        if batcher is None:
            batcher = self._batchers[name] = self._make_batcher(classifiers)
            batcher.start()
        else:
            await batcher.replace(classifiers)
        self._show(checkpoint)
        log.info("model loaded", model=name, version=checkpoint.version, provider=classifiers[0].provider)

    async def unload(self, name: str, drain_seconds: float) -> None:
        """Serve a model no more; what waits for it is finished within the limit.

        Raises:
            UnknownModelError: it is not loaded.
            ModelBusyError: it is the default one, or another model is being loaded or unloaded.
        """
        async with self.changing():
            batcher = self.batcher(name)
            if name == self.default:
                raise ModelBusyError(f"{name} is the default model: load another version in its place instead")
            await to_its_end(self._end(name, batcher, drain_seconds))

    async def _end(self, name: str, batcher: Batcher, drain_seconds: float) -> None:
        del self._batchers[name]
        await batcher.stop(drain_seconds)
        self._metrics.model.remove(name)
        log.info("model unloaded", model=name)

    def encoders(self) -> Iterator[TraceEncoder]:
        """What encodes flows for trace models now."""
        for batcher in self._batchers.values():
            for classifier in batcher.classifiers:
                yield from classifier.encoders

    def give_up(self) -> None:
        """Wait for no engine any more: every batch that is computed fails now."""
        for batcher in self._batchers.values():
            for classifier in batcher.classifiers:
                classifier.give_up()

    async def replace_classifiers(self, change: Callable[[Classifier], Classifier]) -> None:
        """Put another classifier in the place of each, from the next batch on; returns when the old ones are idle.

        To be called while models are `changing`.
        """
        for batcher in self._batchers.values():
            await batcher.replace([change(classifier) for classifier in batcher.classifiers])

    def changing(self) -> _Change:
        """A context in which no other model is loaded or unloaded.

        Raises:
            ModelBusyError: one is, or the service is starting or stopping.
        """
        if not self._running:
            raise ModelBusyError("the service is starting or stopping")
        if self._changing.locked():
            raise ModelBusyError("another model is being loaded or unloaded: come again")
        return _Change(self._changing)

    def _warm_engines(self, directory: Path) -> list[Classifier]:
        classifiers = self._load_engines(directory)
        warm_up(classifiers)
        return classifiers

    def _show(self, checkpoint: Checkpoint) -> None:
        self._metrics.model.labels(checkpoint.name).info({"version": checkpoint.version, "kind": checkpoint.kind})


class _Change:
    """Holds the lock while models change, and gives memory back to the system afterwards."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        await asyncio.to_thread(_release_memory)


def warm_up(classifiers: list[Classifier]) -> None:
    """Run each model on flows that fill it, so that the first real ones do not wait for what is prepared once. On few,
    for an engine keeps what its largest batch took."""
    for classifier in classifiers:
        classifier.classify([SHORT_FLOW])
        classifier.classify([LONG_FLOW, SHORT_FLOW])


def _release_memory() -> None:
    """Collect what an old model or a start left, and hand freed pages of glibc's heap back."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
