"""A flow network in a process of its own says the same, and whatever becomes of the process costs a batch at most."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tapline.models.checkpoint import CheckpointError
from tapline.service.engines.devices import parse_devices
from tapline.service.engines.engine import EngineError
from tapline.service.engines.loading import load_engine
from tapline.service.engines.thread import EngineStalledError
from tapline.service.inference import network_process
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_network import FlowNetwork
from tapline.service.inference.network_messages import NetworkRecipe
from tapline.service.inference.network_opening import open_networks
from tapline.service.inference.network_process import NetworkProcess
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tests.conftest import make_checkpoint, make_flows
from tests.paths import DATA, ROOT
from tests.service.api.client import api_client

pytestmark = pytest.mark.whole

SHIPPED = shipped_checkpoint("flow-protocols")
CAPTURES = [path for path in sorted((DATA / "captures").rglob("*")) if path.suffix in (".pcap", ".pcapng", ".trace")]
RECIPE = NetworkRecipe(str(SHIPPED), "onnx", 1)


@pytest.fixture(scope="module")
def flows():
    """Those of real captures with payload, as a reader and as a list of a request gives them."""
    found = [flow for path in CAPTURES for flow in CaptureReader(path, ReadOptions(heads="header"))]
    return [flow for flow in found if flow.payload_lengths][:500] + make_flows(50)


@pytest.fixture(scope="module")
def here():
    return FlowNetwork(load_engine("onnx", SHIPPED, 1))


@pytest.fixture
def there():
    network = NetworkProcess(RECIPE, 60)
    network.check_started()
    yield network
    network.close()


def all_of(flows, given):
    return [given] * len(flows)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_end(pid):
    for _ in range(500):
        if not is_running(pid):
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} still runs")


def judged(network, flows, ports=True, cascade=True, **options):
    return network.judge(flows, all_of(flows, ports), all_of(flows, cascade), **options)


@pytest.mark.parametrize("ports", [True, False])
@pytest.mark.parametrize("cascade", [True, False])
@pytest.mark.parametrize("with_scores", [True, False])
def test_it_says_what_a_network_here_says(here, there, flows, ports, cascade, with_scores):
    asked = ports, cascade
    found, wanted = (judged(network, flows, *asked, with_scores=with_scores) for network in (there, here))
    assert found.verdicts == wanted.verdicts
    assert any(verdict.by_student for verdict in found.verdicts) == cascade
    assert np.array_equal(found.embeddings, wanted.embeddings)
    assert found.timing.answered_flows == wanted.timing.answered_flows
    assert found.timing.tokens == wanted.timing.tokens
    assert there.provider == here.provider
    assert there.checkpoint == here.checkpoint


def test_of_mixed_batches_it_says_the_same(here, there, flows):
    rng = np.random.default_rng(1)
    ports, cascade = (rng.integers(2, size=len(flows)).astype(bool).tolist() for _ in range(2))
    assert there.judge(flows, ports, cascade).verdicts == here.judge(flows, ports, cascade).verdicts


def test_threads_that_ask_at_a_time_each_get_their_own(here, there, flows):
    parts = [flows[at : at + 40] for at in range(0, 480, 40)]
    found = [None] * len(parts)

    def ask(number):
        found[number] = judged(there, parts[number]).verdicts

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [judged(here, part).verdicts for part in parts]


def test_what_it_fails_on_is_one_error_and_it_goes_on(there, flows):
    with pytest.raises(EngineError, match="ValueError"):
        there.judge(flows, [True, False], all_of(flows, True))
    assert len(judged(there, flows[:3]).verdicts) == 3


def test_a_process_that_was_killed_is_replaced(here, there, flows):
    pid = there.pid
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert Classifier(there).classify_each(flows[:20]) == Classifier(here).classify_each(flows[:20])
    assert there.pid != pid


def test_a_batch_that_kills_it_is_computed_by_another(here, there, flows):
    """Killed while the batch is there: who classifies asks again for each half."""
    os.kill(there.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (there.pid, signal.SIGKILL))
    killer.start()
    assert Classifier(there).classify_each(flows[:20]) == Classifier(here).classify_each(flows[:20])
    killer.join()


def test_one_that_dies_of_every_batch_is_a_stalled_engine(there, flows, monkeypatch):
    """Who classifies would start one for each flow of the batch."""
    monkeypatch.setattr(network_process, "MOST_FRUITLESS", 2)
    for _ in range(2):
        there._living()
        os.kill(there.pid, signal.SIGSTOP)
        threading.Timer(0.1, os.kill, (there.pid, signal.SIGKILL)).start()
        with pytest.raises(EngineError, match="ended by signal 9") as error:
            judged(there, flows)
        assert error.type is EngineError
    with pytest.raises(EngineStalledError, match="ended 2 times without an answer"):
        Classifier(there).classify_each(flows[:20])
    assert len(judged(there, flows[:3]).verdicts) == 3


def test_one_that_cannot_be_started_again_is_a_stalled_engine(tmp_path, flows):
    directory = make_checkpoint(tmp_path / "gone" / "1")
    network = NetworkProcess(NetworkRecipe(str(directory), "onnx", 1), 60)
    network.check_started()
    shutil.rmtree(directory)
    pid = network.pid
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    with pytest.raises(EngineStalledError, match="cannot be started again"):
        Classifier(network).classify_each(flows[:20])


def test_one_that_hangs_is_ended_and_replaced(flows):
    network = NetworkProcess(RECIPE, 0.5)
    network.check_started()
    pid = network.pid
    os.kill(pid, signal.SIGSTOP)
    heard = []

    def ask():
        with pytest.raises(EngineError, match=r"did not answer within 0\.5 seconds") as error:
            judged(network, flows)
        heard.append(error.type)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(heard, key=str) == [EngineError, EngineStalledError]  # the one behind may ask again
    wait_for_end(pid)
    network.timeout_seconds = 60
    assert len(judged(network, flows[:3]).verdicts) == 3
    network.close()


def test_closing_ends_it_and_tells_who_waits(there, flows):
    pid = there.pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, there.close).start()
    with pytest.raises(EngineStalledError, match="the service is stopping"):
        judged(there, flows)
    with pytest.raises(EngineStalledError, match="the service is stopping"):
        there.check()
    wait_for_end(pid)


def test_one_that_nobody_has_any_more_ends():
    network = NetworkProcess(RECIPE, 60)
    network.check_started()
    pid = network.pid
    del network
    gc.collect()
    wait_for_end(pid)


def test_it_does_not_outlive_who_started_it():
    code = (
        "import os, time\n"
        "from tests.service.inference.test_network_process import RECIPE, NetworkProcess\n"
        "network = NetworkProcess(RECIPE, 60)\nnetwork.check_started()\n"
        "print(network.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as process:
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
    wait_for_end(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_for_all_processes_of_a_service_leave_it_at_work(there, flows, number):
    os.kill(there.pid, number)
    pid = there.pid
    assert len(judged(there, flows[:3]).verdicts) == 3
    assert there.pid == pid


def test_keys_and_passwords_stay_here(monkeypatch):
    monkeypatch.setenv("TAPLINE_API_KEY", "a secret")
    network = NetworkProcess(RECIPE, 60)
    network.check_started()
    assert b"TAPLINE" not in Path(f"/proc/{network.pid}/environ").read_bytes()
    network.close()


def test_a_network_that_cannot_be_loaded_is_the_same_error_as_here(tmp_path):
    directory = make_checkpoint(tmp_path / "broken" / "1")
    model = directory / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as wanted:
        load_engine("onnx", directory, 1)
    network = NetworkProcess(NetworkRecipe(str(directory), "onnx", 1), 60)
    with pytest.raises(CheckpointError) as found:
        network.check_started()
    assert str(found.value) == str(wanted.value)
    wait_for_end(network.pid)


def test_a_precision_that_an_engine_lacks_is_refused(tmp_path):
    with pytest.raises(EngineError, match="the onnx engine does not compute in bfloat16"):
        open_networks(NetworkRecipe(str(SHIPPED), "onnx", 1, "bfloat16"), 1, None, 60)


def test_devices_have_a_process_each_at_least():
    devices = parse_devices("simulated:2")
    networks = open_networks(RECIPE, 1, devices, 60)
    assert [network.provider for network in networks] == [
        f"CPUExecutionProvider in the place of GPU {number}" for number in range(2)
    ]
    networks = open_networks(RECIPE, 3, devices, 60)
    assert [network.provider[-1] for network in networks] == ["0", "1", "0"]


def answers_of(http):
    answer = http.post("/v1/classify/pcap", content=(DATA / "captures" / "android.pcap").read_bytes())
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["traces"]
    return found


def restarts_of(service):
    return service.metrics.registry.get_sample_value(
        "tapline_part_deaths_total", {"part": f"process of {service.default_model}"}
    )


def test_a_service_with_processes_serves_the_same_through_a_death_and_a_swap(tmp_path):
    def client(processes):
        settings = Settings(checkpoint=SHIPPED, data_dir=tmp_path / str(processes), engine_processes=processes)
        service = Service(settings)
        return service, api_client(service)

    _, plain = client(0)
    with plain as http:
        wanted = answers_of(http)
    service, served = client(2)
    with served as http:
        first, second = (each.network.pid for each in service.batcher.classifiers)
        assert first != second
        assert answers_of(http) == wanted
        os.kill(first, signal.SIGKILL)
        os.kill(second, signal.SIGKILL)
        assert answers_of(http) == wanted
        assert 1 <= restarts_of(service) <= 2  # the other is started when it is asked
        before = [each.network.pid for each in service.batcher.classifiers]
        http.portal.call(service.load_model, service.default_model)
        after = [each.network.pid for each in service.batcher.classifiers]
        assert not set(before) & set(after)
        for pid in before:
            wait_for_end(pid)
        assert answers_of(http) == wanted
    del service, served
    gc.collect()
    for pid in after:
        wait_for_end(pid)
