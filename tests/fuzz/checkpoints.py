"""Checkpoints changed at random, but so that most pass the first checks: a sentence refuses them, or they serve."""

import contextlib
import json
import math
import os
import random as random_module
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file, save_file

from tapline.models.checkpoint import MANIFEST, WEIGHTS, CheckpointError, checkpoint_kind, read_any_checkpoint
from tapline.service.engines.engine import EngineError, EngineName, Precision
from tapline.service.engines.loading import load_engine
from tapline.service.engines.onnx_file import OnnxFileError, check_onnx
from tapline.service.engines.warm_flows import LONG_FLOW, SHORT_FLOW
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_features import size_bytes
from tapline.service.inference.repository import ZOO
from tapline.service.inference.trace_loading import load_beside
from tapline.service.inference.trial import try_out
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import ScoreJob, TraceFlow, WindowKey
from tests.service.inference import hostile

TRIAL_SECONDS = 20.0
MAX_MESSAGE_CHARS = 600
SOURCES = sorted(path.parent for path in ZOO.glob(f"*/*/{MANIFEST}"))
WAYS: list[tuple[EngineName, Precision]] = [("onnx", "float32")] * 8 + [("onnx", "int8")] * 2 + [("torch", "float32")]
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1, 2, 3, 7, 64, 65535, 65536, 65537, 2**31, 2**63, 10**400, 0.0, -1.5, 1e-300, 1e300, "", "x",
    "..", "../x", "\x1b[31m", "\udc80", "x" * 5000, [], ["a"], {}, {"a": 1}, "1", "mm4flow", "tracegram",
]  # fmt: skip

Change = Callable[[random_module.Random, Path], None]


def case(random: random_module.Random) -> None:
    """Change a checkpoint that ships, try to serve it.

    Raises:
        Exception: anything happened but a clear sentence, or verdicts that are numbers.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = shutil.copytree(random.choice(SOURCES), Path(folder) / "repository" / "name" / "1")
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            with contextlib.suppress(ImpossibleError):
                random.choice(CHANGES)(random, directory)
        try:
            read_any_checkpoint(directory)
            engine, precision = random.choice(WAYS)
            try_out(directory, engine=engine, precision=precision, seconds=TRIAL_SECONDS)
            if engine == "onnx" and precision == "float32":
                serve(directory)
        except (CheckpointError, EngineError) as error:
            check_sentence(str(error))


def check_sentence(message: str) -> None:
    """One sentence for people."""
    assert message, "an error without a word"
    assert message.isprintable(), "an error with characters that do not print"
    assert len(message) <= MAX_MESSAGE_CHARS, f"an error of {len(message)} characters"
    assert "Traceback" not in message, message


def serve(directory: Path) -> None:
    """Load what passed its trial, and look at every number that it gives."""
    if checkpoint_kind(directory) == "mm4flow":
        outcomes = Classifier(load_engine("onnx", directory, 1), min_packets=1).classify([SHORT_FLOW, LONG_FLOW])
        found = [outcome.verdict if outcome is not None else None for outcome in outcomes]
    else:
        scorer = TraceScorer(load_beside("onnx", directory, 1))
        features = bytes(size_bytes(scorer.checkpoint))
        flow = TraceFlow("F", 0, 1, "192.0.2.1", 1, "192.0.2.2", 2, "udp", "DNS", 100, early=False, features=features)
        jobs = [ScoreJob(WindowKey("fuzz", "192.0.2.1", 0), 1, [flow], 0, final=True)]
        found = [trace.verdict if trace is not None else None for trace in scorer.score(jobs)]
    for verdict in found:
        if verdict is not None:
            numbers = [verdict.confidence, *(other.confidence for other in verdict.alternatives)]
            assert all(math.isfinite(number) and 0 <= number <= 1 for number in numbers), numbers


class ImpossibleError(Exception):
    """A change that cannot be made of what an earlier one left."""


def _manifest(directory: Path) -> dict[str, Any]:
    _regular(directory / MANIFEST)
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise ImpossibleError
    return manifest


def _regular(path: Path) -> None:
    """An earlier change may have left a pipe, which waits for a writer, or a device without end."""
    if not path.is_file():
        raise ImpossibleError


def _record(directory: Path, path: Path) -> None:
    """Write size and hash of a changed file into the manifest, as who means harm would."""
    _regular(directory / MANIFEST)
    with contextlib.suppress(OSError, msgspec.DecodeError, RecursionError, KeyError, TypeError):
        hostile.record(directory, path.name)


def _file(random: random_module.Random, directory: Path, *endings: str) -> Path:
    found = sorted(path for path in directory.iterdir() if path.name.endswith(endings) and path.is_file())
    if not found:
        raise ImpossibleError
    return random.choice(found)


def change_field(random: random_module.Random, directory: Path) -> None:
    """Any field of the manifest, at any depth, to an odd value; or gone; or one more."""
    manifest = _manifest(directory)
    part: Any = manifest
    while True:
        keys = list(part) if isinstance(part, dict) else range(len(part))
        if not keys:
            break
        key = random.choice(list(keys))
        if isinstance(part[key], dict | list) and random.random() < 0.7:
            part = part[key]
            continue
        if random.random() < 0.1:
            del part[key]
        elif isinstance(part[key], int | float) and random.random() < 0.5:
            part[key] = part[key] * random.choice((2, -1, 0, 0.5, 1000)) + random.choice((0, 1, -1))
        else:
            part[key] = random.choice(ODD_VALUES)
        break
    if random.random() < 0.1:
        manifest[random.choice(("x", "kind", "network", "files"))] = random.choice(ODD_VALUES)
    (directory / MANIFEST).write_text(json.dumps(manifest))


def change_manifest_bytes(random: random_module.Random, directory: Path) -> None:
    """Bytes of the manifest, deep nesting, or something else in its place."""
    path = directory / MANIFEST
    _regular(path)
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        path.write_bytes(
            random.choice((
                _flipped(random, content), content[: random.randrange(len(content) + 1)], b"[" * 100_000,
                content[:-2] + b',"metrics":' + b"[" * 50_000, b"\xff\xfe", b"", b"null", b" " * (5 << 20),
            ))
        )  # fmt: skip


def change_bytes(random: random_module.Random, directory: Path) -> None:
    """Flip or cut bytes of a graph or of weights; recorded, most times."""
    path = _file(random, directory, ".onnx", ".safetensors")
    content = path.read_bytes()
    cut = content[: random.randrange(len(content) + 1)]
    head = _flipped(random, content[:4096]) + content[4096:]
    changed = random.choice((_flipped(random, content), head, head, cut, content + b"\0" * random.randrange(1, 64)))
    path.write_bytes(changed)
    if path.suffix == ".onnx":
        with contextlib.suppress(OnnxFileError):
            check_onnx(changed)
    if random.random() < 0.9:
        _record(directory, path)


def _flipped(random: random_module.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 2, 8, 64)) if content else 0):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def change_graph(random: random_module.Random, directory: Path) -> None:
    """A graph that is whole, and not what it should be."""
    path = _file(random, directory, ".onnx")
    graphs = (
        hostile.nan_weights, hostile.rename_output, hostile.endless_loop, hostile.tens_of_gigabytes, hostile.one_row,
        hostile.one_class_less, hostile.external("beside.bin"), hostile.external("../../outside"),
        lambda graph: _change_weights(random, graph), lambda graph: _change_nodes(random, graph),
        lambda graph: _change_shapes(random, graph),
    )  # fmt: skip
    try:
        hostile.change_graph(directory, path.name, random.choice(graphs))
    except Exception as error:  # an earlier change left no graph
        raise ImpossibleError from error


def _change_weights(random: random_module.Random, graph: onnx.GraphProto) -> None:
    tensor = random.choice(graph.initializer)
    array = numpy_helper.to_array(tensor).copy()
    if array.size and tensor.data_type == TensorProto.FLOAT:
        array.flat[random.randrange(array.size)] = random.choice((math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    elif array.size:
        array.flat[random.randrange(array.size)] = random.choice((0, 1, -1, 100))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _change_nodes(random: random_module.Random, graph: onnx.GraphProto) -> None:
    node = random.choice(graph.node)
    names = [name for other in graph.node for name in other.output]
    match random.randrange(4):
        case 0:
            graph.node.remove(node)
        case 1:
            node.op_type = random.choice(("Identity", "Add", "Tile", "Expand", "Loop", "If", "Unknown", "Relu"))
        case 2 if node.input:
            node.input[random.randrange(len(node.input))] = random.choice(names)
        case _ if node.attribute:
            node.attribute[random.randrange(len(node.attribute))].i = random.choice((0, -1, 7, 2**40))


def _change_shapes(random: random_module.Random, graph: onnx.GraphProto) -> None:
    if random.random() < 0.5:
        value = random.choice([*graph.output, *graph.input])
        value.type.tensor_type.elem_type = random.choice((1, 6, 7, 9, 10))
    else:
        tensor = random.choice(graph.initializer)
        tensor.dims[:] = [random.choice((0, 1, -1, 2**31, 2**62)) for _ in range(random.randrange(5))]


def change_weights(random: random_module.Random, directory: Path) -> None:
    """Weights of another shape, name or value."""
    path = directory / WEIGHTS
    try:
        weights = load_file(path)
    except Exception as error:
        raise ImpossibleError from error
    name = random.choice(sorted(weights))
    array = weights.pop(name)
    if random.random() < 0.7:
        other = random.choice((np.full_like(array, np.nan), array[..., :1], array.astype("f8"), array.ravel()))
        weights[random.choice((name, "other"))] = np.ascontiguousarray(other)
    save_file(weights, path)
    _record(directory, path)


def change_files(random: random_module.Random, directory: Path) -> None:
    """Files gone, more of them, links, pipes, folders."""
    path = _file(random, directory, ".onnx", ".safetensors", ".json", ".md")
    outside = directory.parent.parent / "outside"
    match random.randrange(6):
        case 0:
            path.unlink()
        case 1:
            shutil.move(path, outside)
            path.symlink_to(random.choice((outside, Path("../../outside"), Path(path.name), Path("/dev/zero"))))
        case 2:
            path.unlink()
            os.mkfifo(path)
        case 3:
            path.unlink()
            path.mkdir()
        case 4:
            (directory / random.choice(("beside.bin", "service.py", "onnx.py"))).write_bytes(bytes(1000))
        case 5:
            shutil.move(path, directory / "inside")
            path.symlink_to("inside")  # which may be


CHANGES: tuple[Change, ...] = (
    change_field, change_field, change_field, change_manifest_bytes, change_bytes, change_bytes, change_graph,
    change_graph, change_graph, change_weights, change_files,
)  # fmt: skip
