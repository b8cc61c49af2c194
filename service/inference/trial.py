"""Every checkpoint that is not tapline's own is first tried out in a process that can be killed.

What it does there, run without end, take all memory or crash, it does not do to the service. The checkpoints that ship
are not tried: who can change them can change this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path

import msgspec

from tapline.installation import module_command
from tapline.models.checkpoint import CheckpointError
from tapline.service.engines.engine import EngineName, Precision
from tapline.service.inference import trial_worker
from tapline.service.inference.repository import ZOO
from tapline.service.inference.trial_worker import TrialOptions, TrialResult

TRIAL_SECONDS = 30.0

_OWN_SETTINGS = "TAPLINE_"
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}


def try_out(
    *directories: Path, engine: EngineName, precision: Precision = "float32", seconds: float = TRIAL_SECONDS
) -> None:
    """See whether an engine can serve checkpoints, all at the same time; each may take `seconds`.

    Raises:
        CheckpointError: it cannot; the message says why.
    """
    with contextlib.ExitStack() as stack:
        trials = [
            stack.enter_context(_Trial(directory, engine, precision, seconds))
            for directory in directories
            if not _ships(directory)
        ]
        for trial in trials:
            trial.wait()


async def try_out_aside(directory: Path, engine: EngineName, precision: Precision, seconds: float) -> None:
    """As `try_out`, beside the event loop; cancelled, it ends at once.

    Raises:
        CheckpointError: as there.
    """
    if not _ships(directory):
        with _Trial(directory, engine, precision, seconds) as trial:
            await asyncio.to_thread(trial.wait)


def _ships(directory: Path) -> bool:
    return directory.resolve().is_relative_to(ZOO)


class _Trial:
    """A trial that goes on; leaving the context kills it."""

    def __init__(self, directory: Path, engine: EngineName, precision: Precision, seconds: float) -> None:
        self._directory = directory
        self._seconds = seconds
        options = TrialOptions(str(directory.absolute()), engine, precision, seconds)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
        self._process = subprocess.Popen(
            # this very package, whatever lies in the current directory (`-P`: not on the path)
            module_command(trial_worker.__name__, msgspec.json.encode(options).decode()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | _ENVIRONMENT,
        )

    def __enter__(self) -> _Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            CheckpointError: it went badly.
        """
        try:
            answer, _ = self._process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise CheckpointError(
                f"{self._directory}: loading and running it once took longer than {self._seconds:g} seconds: give "
                "another checkpoint, or more time (--model-trial-seconds)"
            ) from None
        try:
            result = msgspec.json.decode(answer, type=TrialResult)
        except msgspec.DecodeError:
            raise CheckpointError(
                f"{self._directory}: the engine died of it (status {self._process.returncode}), as when it takes more "
                "memory than its size explains: export it again"
            ) from None
        if result.error is not None:
            raise CheckpointError(result.error)
