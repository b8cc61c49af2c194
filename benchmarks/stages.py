"""Where the CPU seconds of `tapline classify` go, from reading to the written line, stage by stage.

    python benchmarks/stages.py CAPTURE [--traces none] [--format ndjson]

One process, one thread of the engine; each stage is timed by the clock of the thread that it runs in, without the
stages inside it. What is left of the process's time is reading, and what lies between the stages.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardware import describe, report

from tapline.models.trace_context import ContextColumns
from tapline.service.command.output import Format, writer
from tapline.service.engines.onnx_engine import OnnxEngine
from tapline.service.inference import classifier as classifying
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.inference.trace_encoders import TraceEncoder
from tapline.service.inference.trace_loading import trace_directories
from tapline.service.python.chosen import open_classifier
from tapline.service.python.offline import OfflineRun, Result
from tapline.service.results.records import SummaryBuilder
from tapline.service.traces.capture_traces import CaptureTraces

STAGES: list[tuple[str, Any, list[str]]] = [
    ("engine", OnnxEngine, ["run"]),
    ("encoding", classifying, ["encode"]),
    ("verdicts", classifying, ["flow_verdicts"]),
    ("context of traces", ContextColumns, ["table"]),
    ("features of traces", TraceEncoder, ["encode"]),
    ("windows", CaptureTraces, ["add", "finish"]),
    ("verdicts on traces", CaptureTraces, ["ready"]),
    ("summary", SummaryBuilder, ["add", "leave_out", "add_trace"]),
    ("outcomes", classifying.Classifier, ["classify"]),
    ("what is asked about", classifying.Classifier, ["accepts"]),
]
_WRITING = "writing"


class Clock:
    """Seconds of CPU by stage, in several threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, counted as of a stage."""

        def counted(*args: Any, **options: Any) -> Any:
            stack = self._inside.__dict__.setdefault("stack", [])
            stack.append(0.0)
            started = time.thread_time()
            try:
                return work(*args, **options)
            finally:
                took = time.thread_time() - started
                self.seconds[stage] += took - stack.pop()
                if stack:
                    stack[-1] += took

        return counted


def main() -> None:
    """Classify once and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture")
    parser.add_argument("--traces", nargs="*", default=[], help="trace models; none for no traces")
    parser.add_argument("--format", default="ndjson", choices=["json", "ndjson", "csv", "table"])
    options = parser.parse_args()
    clock = Clock()
    for stage, owner, names in STAGES:
        for name in names:
            setattr(owner, name, clock.timed(stage, getattr(owner, name)))
    classifier = open_classifier(
        shipped_checkpoint(classifying.DEFAULT_CHECKPOINT),
        trace_directories(options.traces),
        required=False,
        warn=print,
        threads=1,
    )
    format_: Format = options.format
    with tempfile.TemporaryFile("w") as file:
        target = writer(format_, file, 50)
        add, add_trace = clock.timed(_WRITING, target.add), clock.timed(_WRITING, target.add_trace)
        clock.seconds.clear()
        started = time.process_time()
        run = OfflineRun([options.capture], "auto", classifier)
        for found in run:
            if isinstance(found, Result):
                add(found.flow, found.verdict, found.input)
            else:
                add_trace(found)
        summary = run.summary()
        clock.timed(_WRITING, target.finish)(summary)
        whole = time.process_time() - started
    print(f"machine    {describe()}")
    print(f"input      {Path(options.capture).name}, {summary.flows} flows, {summary.classified} classified")
    clock.seconds["reading, and the rest"] = whole - sum(clock.seconds.values())
    for stage, seconds in sorted(clock.seconds.items(), key=lambda entry: -entry[1]):
        print(f"{stage:24} {seconds:7.2f} s  {seconds / max(1, summary.flows) * 1e6:7.1f} us a flow")
    beside = whole - clock.seconds["engine"] - clock.seconds["reading, and the rest"]
    report(
        f"`tapline classify --format {format_}` beside reading and engine, {Path(options.capture).name}",
        f"{beside / max(1, summary.flows) * 1e6:.0f} us of CPU a flow, of {whole:.1f} s in all",
    )


if __name__ == "__main__":
    main()
