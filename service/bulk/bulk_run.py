"""A bulk run: which captures are left, their way through a Ray Dataset to workers that are its actors, and what came of
each.

A row of the dataset is a task: one large capture, or several small ones. It goes to an actor as names, and comes back
as accounts: flows and verdicts stay where they are computed, for traces need all flows of a capture in their order, and
go from there into files. So nothing in Ray's object store grows with a capture. A task whose actor dies is given to
another one, until it ends.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Sequence
from typing import Any

import msgspec

from tapline.service.bulk.bulk_records import BulkCapture, BulkError, CaptureAccount, one_line
from tapline.service.bulk.bulk_worker import BulkWorker, WorkerOptions
from tapline.service.bulk.ray_cluster import Places

TASK_BYTES = 64 << 20
"""Captures of a task, unless it is one that is larger."""

TASK_CAPTURES = 256
TASKS_PER_WORKER = 8
"""At least as many where captures are small, so that workers end at about the same time."""

_ANSWERS = msgspec.json.Decoder(list[CaptureAccount])


def tasks_of(captures: Sequence[BulkCapture], workers: int) -> list[list[BulkCapture]]:
    """The captures by the task, the largest first, so that the last to end are small."""
    total = sum(capture.size_bytes for capture in captures)
    most_bytes = min(TASK_BYTES, total // (workers * TASKS_PER_WORKER))
    tasks: list[list[BulkCapture]] = []
    size = 0
    for capture in sorted(captures, key=lambda each: -each.size_bytes):
        if tasks and size + capture.size_bytes <= most_bytes and len(tasks[-1]) < TASK_CAPTURES:
            tasks[-1].append(capture)
            size += capture.size_bytes
        else:
            tasks.append([capture])
            size = capture.size_bytes
    return tasks


def run_on_ray(
    captures: Sequence[BulkCapture], options: WorkerOptions, where: Places
) -> Generator[CaptureAccount, None, None]:
    """Do captures on the Ray that this process is connected to; gives the account of each as its task ends.

    Raises:
        BulkError: no worker can start, or the directory cannot be written.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    tasks = tasks_of(captures, where.workers)
    dataset = ray.data.from_items(
        [{"captures": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)
    ).map_batches(
        _Actor,
        fn_constructor_args=(options,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=where.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=where.cpus,
        num_gpus=where.gpus or None,
    )
    batch: Any
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for answer in batch.to_pylist():
                yield from _ANSWERS.decode(answer["accounts"])
                if answer["stop"]:
                    raise BulkError(answer["stop"])
    except ray.exceptions.RayError as error:
        raise BulkError(f"Ray: {one_line(error)}") from None


class _Actor:
    """What Ray makes of a worker: it never raises, for Ray Data would hold that to be a fault of its own."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._worker: BulkWorker | None = None

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        accounts: list[CaptureAccount] = []
        stop = ""
        try:
            self._worker = self._worker or BulkWorker(self._options)
            for task in batch["captures"].to_pylist():
                accounts += map(self._worker.capture, pickle.loads(task))
        except Exception as error:
            stop = one_line(error)
        return pa.table({"accounts": [msgspec.json.encode(accounts)], "stop": [stop]})
