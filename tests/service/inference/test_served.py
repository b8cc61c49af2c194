"""Models are loaded, swapped and unloaded under traffic: no flow is lost, a bad checkpoint replaces nothing."""

import asyncio
import shutil

import msgspec
import pytest

from tapline.models.checkpoint import MANIFEST, CheckpointError
from tapline.service.engines.loading import load_engine
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import Repository, UnknownModelError
from tapline.service.inference.served import ModelBusyError, ServedModels
from tapline.service.inference.trial import try_out_aside
from tapline.service.inference.waiting import VerdictError
from tapline.service.metrics import Metrics
from tests.conftest import make_checkpoint, make_flows

pytestmark = pytest.mark.whole


@pytest.fixture
def root(tmp_path, checkpoint_dir):
    shutil.copytree(checkpoint_dir, tmp_path / "random" / "1")
    make_checkpoint(tmp_path / "random" / "2", version="2")
    make_checkpoint(tmp_path / "second" / "1", name="second")
    bad = make_checkpoint(tmp_path / "random" / "3", version="3")
    (bad / "model.onnx").write_bytes(b"damaged")
    return tmp_path


def run(root, body):
    metrics = Metrics()

    async def try_out(directory):
        await try_out_aside(directory, "onnx", "float32", 60)

    def load(directory):
        return [Classifier(load_engine("onnx", directory, 1))]

    def batcher(classifiers):
        return Batcher(classifiers, metrics, max_queue_delay_ms=0, max_batch_size=16)

    async def main():
        served = ServedModels(
            Repository(root, {"random": root / "random" / "1"}), "random", try_out, load, batcher, metrics
        )
        await served.start()
        served.repository.pinned.clear()
        try:
            async with asyncio.timeout(60):
                return await body(served)
        finally:
            await served.stop(5)

    return asyncio.run(main())


def test_a_swap_under_traffic_loses_no_flow(root):
    async def body(served):
        answered = []

        async def traffic():
            for seed in range(60):
                answered.extend(await served.batcher().submit(make_flows(8, seed)))

        task = asyncio.create_task(traffic())
        for version in ("2", "1", "2"):
            await served.load("random", version)
        await task
        (last,) = await served.batcher().submit(make_flows(1))
        return answered, last

    answered, last = run(root, body)
    assert len(answered) == 480
    assert None not in answered
    assert {outcome.verdict.version for outcome in answered} <= {"1", "2"}
    assert last.verdict.version == "2"


def test_a_bad_checkpoint_never_replaces_a_good_one(root):
    async def body(served):
        with pytest.raises(CheckpointError, match="the manifest says"):
            await served.load("random")
        with pytest.raises(UnknownModelError, match="no version 7 of random"):
            await served.load("random", "7")
        (outcome,) = await served.batcher().submit(make_flows(1))
        return outcome.verdict.version

    assert run(root, body) == "1"


def test_a_checkpoint_under_another_name_is_refused(root):
    shutil.copytree(root / "random" / "1", root / "impostor" / "1")

    async def body(served):
        with pytest.raises(CheckpointError, match="holds a model named random, expected impostor"):
            await served.load("impostor")
        return sorted(served.loaded())

    assert run(root, body) == ["random"]


def test_models_are_loaded_and_unloaded_beside_each_other(root):
    async def body(served):
        await served.load("second")
        both = sorted(served.loaded())
        (outcome,) = await served.batcher("second").submit(make_flows(1))
        gone = served.batcher("second")
        await served.unload("second", 5)
        with pytest.raises(UnknownModelError, match="no flow model second is loaded, only random"):
            served.batcher("second")
        with pytest.raises(VerdictError):
            gone.submit(make_flows(1))
        with pytest.raises(ModelBusyError, match="default model"):
            await served.unload("random", 5)
        return both, outcome.verdict.model

    assert run(root, body) == (["random", "second"], "second")


def test_one_change_at_a_time(root):
    async def body(served):
        first = asyncio.create_task(served.load("random", "2"))
        await asyncio.sleep(0)
        with pytest.raises(ModelBusyError, match="another model"):
            await served.load("second")
        return (await first).version

    assert run(root, body) == "2"


def test_the_manifest_of_another_version_is_refused(root):
    path = root / "second" / "1" / MANIFEST
    manifest = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**manifest, "format_version": 99}))

    async def body(served):
        with pytest.raises(CheckpointError, match="format version 99"):
            await served.load("second")
        return True

    assert run(root, body)
