"""Ray as bulk runs use it: one started for them on this machine, or a cluster that is there; and what each of its nodes
can take. The only module that imports `ray`.

The Ray of this machine listens on the loopback interface alone, has neither dashboard nor statistics of usage, a
bounded object store, and its files in a directory of its own; all of it is gone when the block is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tapline.service.bulk.bulk_records import BulkError, one_line

OBJECT_STORE_BYTES = 100_000_000
"""Of the Ray of this machine; what workers say of captures lies in it, and nothing else."""

STARTS = 4
"""How often it is started: a part of Ray that waits 15 s for another ends it all on a machine that is busy."""

END_SECONDS = 15.0
"""How long processes of Ray may take to end before they are killed."""


@dataclass(frozen=True)
class Places:
    """How many workers have room, and what each of them asks Ray for."""

    workers: int
    cpus: int
    gpus: float


@contextlib.contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """A Ray on this machine, of `cpus` CPUs as it counts them.

    Raises:
        BulkError: it does not start.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what makes it listen on loopback alone, on any system
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with _quiet_ray() as ray, contextlib.ExitStack() as stack:
        for start in range(1, STARTS + 1):
            try:
                stack.enter_context(_started(ray, cpus))
                break
            except Exception as error:
                if start == STARTS:
                    raise BulkError(f"Ray does not start on this machine: {one_line(error)}") from None
        yield


@contextlib.contextmanager
def _started(ray: Any, cpus: int) -> Iterator[None]:
    """A Ray, whose processes and files are gone afterwards."""
    import psutil  # that of Ray

    with tempfile.TemporaryDirectory(prefix="tapline-", ignore_cleanup_errors=True) as folder:
        before = set(psutil.Process().children())
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                **_SILENT,
            )
            yield
        finally:
            started = [child for child in psutil.Process().children(recursive=True) if child not in before]
            ray.shutdown()
            _, alive = psutil.wait_procs(started, END_SECONDS)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, END_SECONDS)


@contextlib.contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """A cluster that is there, whose nodes have this very tapline installed.

    Raises:
        BulkError: there is none.
    """
    with _quiet_ray() as ray:
        try:
            try:
                ray.init(address=address, **_SILENT)
            except Exception as error:
                raise BulkError(f"{address}: no Ray cluster answers: {one_line(error)}") from None
            yield
        finally:
            ray.shutdown()


_SILENT: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}


@contextlib.contextmanager
def _quiet_ray() -> Iterator[Any]:
    """Ray, which says nothing on its own; what it has to say is in its log files.

    Its core writes to descriptor 2, whatever it is told: that leads nowhere meanwhile, and `sys.stderr` to where it
    did.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will not do any more
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    sys.stderr.flush()
    before = sys.stderr
    with open(os.dup(2), "w", encoding=before.encoding, errors=before.errors, buffering=1) as kept:  # noqa: PTH123
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.stderr = kept
        try:
            yield ray
        finally:
            sys.stderr = before
            os.dup2(kept.fileno(), 2)


def ray_nodes() -> list[dict[str, Any]]:
    """The nodes of the Ray that this process is connected to."""
    import ray

    nodes: Any = ray.nodes  # without types
    return list(nodes())


def places(nodes: Iterable[Mapping[str, Any]], workers: int | None, threads: int) -> Places:
    """Where workers of so many threads each have room; all of it where no number of them is asked for.

    Where there are GPUs, workers are where these are, and share them: while some of them read, another computes.

    Args:
        nodes: as `ray.nodes()` tells them.
        workers: how many are asked for, None for as many as there is room for.
        threads: CPUs of each.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [resources for resources in alive if resources.get("GPU", 0) >= 1]
    used = with_gpus or alive
    room = sum(int(resources.get("CPU", 0)) // threads for resources in used)
    wanted = max(1, min(room, workers or room))
    if not with_gpus:
        return Places(wanted, threads, 0)
    gpus = int(sum(resources["GPU"] for resources in with_gpus))
    return Places(wanted, threads, 1 / -(-wanted // gpus))
