"""Every engine and precision on a CPU beside float32 torch: what it changes in the answers, and what it costs.

    python benchmarks/precision.py CAPTURE... [--checkpoint DIRECTORY] [--flows 1000] [--threads 1]

Real flows with payload. The int8 form is made on the spot where the checkpoint has none. Times are CPU seconds of this
process; GPUs are another matter.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import torch
from cpu_time import cpu_seconds
from engine import read_flows
from hardware import describe, report

from tapline.models.checkpoint import MANIFEST, ONNX, ONNX_INT8, FileRecord, file_sha256, read_checkpoint
from tapline.models.encode import encode
from tapline.service.engines.engine import Engine, EngineName, Precision
from tapline.service.engines.loading import load_engine
from tapline.service.inference.repository import shipped_checkpoint
from tapline.training.export.quantise import quantise

SIDES: tuple[tuple[EngineName, Precision], ...] = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnx", "float32"),
    ("onnx", "int8"),
)


def with_int8(source: Path, target: Path) -> Path:
    """A copy of a checkpoint that has an int8 form."""
    shutil.copytree(source, target)
    checkpoint = read_checkpoint(target)
    if ONNX_INT8 not in checkpoint.files:
        path = target / ONNX_INT8
        quantise(target / ONNX, path)
        files = checkpoint.files | {ONNX_INT8: FileRecord(path.stat().st_size, file_sha256(path))}
        manifest = msgspec.structs.replace(checkpoint, files=files)
        (target / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return target


def probabilities(engine: Engine, logits: np.ndarray) -> np.ndarray:
    scaled = logits / engine.checkpoint.calibration.temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def main() -> None:
    """Run every side over the same flows; the first is what the others are compared with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint("flow-protocols"))
    parser.add_argument("--flows", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    flows = read_flows(options.captures, options.flows)
    expected: np.ndarray | None = None
    print(f"machine    {describe()}, {options.threads} threads; {len(flows)} real flows")
    with tempfile.TemporaryDirectory() as folder:
        directory = with_int8(options.checkpoint, Path(folder) / "1")
        batch = encode(flows, read_checkpoint(directory).features)
        for name, precision in SIDES:
            engine = load_engine(name, directory, options.threads, precision)
            found = probabilities(engine, engine.run(batch).logits)
            expected = found if expected is None else expected
            speed = len(flows) / cpu_seconds(lambda engine=engine: engine.run(batch), 1)
            agreement = (found.argmax(1) == expected.argmax(1)).mean()
            report(
                f"{options.checkpoint.parent.name} by {name} in {precision}, {len(flows)} real flows",
                f"{speed:.0f} flows per CPU second; the same label for {agreement:.2%}, probabilities within "
                f"{np.abs(found - expected).max():.1e} of torch in float32",
            )


if __name__ == "__main__":
    main()
