"""The image is built, run as it is meant to be, upgraded and rolled back, on an engine of the test's own."""

import contextlib
import json
import time
import urllib.error
import urllib.request

import pytest

from tests.deployment.engine import PYTHON, needs_engine
from tests.paths import DATA
from tests.zeek.clusters import free_ports

pytestmark = [pytest.mark.whole, pytest.mark.timeout(2400), needs_engine]

CAPTURE = DATA / "captures" / "android.pcap"
OWN_MB = 560
"""Most that the image may hold beside its base."""

KEY = {"X-API-Key": "a-key-of-the-test"}


def call(url, data=None, headers=KEY):
    request = urllib.request.Request(url, data, {"Content-Type": "application/octet-stream", **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def until(ask, seconds=90):
    """What `ask` gives once it gives something; errors of a service that is not there yet are nothing."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if found := ask():
                return found
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@contextlib.contextmanager
def running(engine, tag, *arguments):
    """A container as an operator runs it, on a port of its own; gives its name and address, and stops it."""
    (port,) = free_ports(1)
    name = f"tapline-{port}"
    engine.docker(
        "run", "--detach", "--name", name, "--network=host", "--read-only", "--cap-drop=ALL", "--memory=2g",
        "--security-opt=no-new-privileges:true", "--volume=state:/var/lib/tapline", "--volume=uploads:/tmp",
        "--env", f"TAPLINE_API_KEY={KEY['X-API-Key']}", tag,
        "serve", f"--port={port}", "--state-dir=/var/lib/tapline/state", *arguments,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: call(f"{url}/readyz"))
        yield name, url
        engine.docker("stop", "--time=30", name)
        assert engine.inspect(name)["State"]["ExitCode"] == 0
    finally:
        engine.docker("rm", "--force", name)


def in_image(engine, *command):
    return engine.docker("run", "--rm", "--network=host", "--entrypoint", command[0], "tapline:1", *command[1:])


def test_a_capture_is_classified_by_a_user_without_rights_on_a_root_that_is_read(engine):
    with running(engine, "tapline:1") as (name, url):
        assert engine.docker("exec", name, "id", "-u") == "10001"
        refused = engine.run(["/usr/bin/docker", "exec", name, "touch", "/opt/tapline/mine"])
        assert "Read-only file system" in refused.stderr
        answer = call(f"{url}/v1/classify/pcap", CAPTURE.read_bytes())
        assert answer["summary"]["classified"] == 66
        with pytest.raises(urllib.error.HTTPError, match="401"):
            call(f"{url}/v1/models", headers={})


def test_the_health_check_asks_where_the_service_listens(engine):
    check = ["/usr/bin/docker", "exec", "NAME", *engine.inspect("tapline:1")["Config"]["Healthcheck"]["Test"][1:]]
    with running(engine, "tapline:1") as (name, url):
        check[2] = name
        healthy = engine.run(check)
        assert (healthy.returncode, healthy.stdout) == (0, f"{url}/healthz answers\n")
        engine.docker("kill", "--signal=STOP", name)  # the process is there, and does not answer
        hanging = engine.run(check)
        assert (hanging.returncode, hanging.stderr) == (1, f"{url}/healthz does not answer: timed out\n")
        engine.docker("kill", "--signal=CONT", name)


def test_upgrade_and_roll_back_keep_what_there_is(engine):
    seen = []
    for tag in ("tapline:1", "tapline:2", "tapline:1"):
        with running(engine, tag) as (_, url):
            for job in seen:
                assert call(f"{url}/v1/jobs/{job}")["summary"]["classified"] == 66
            job = call(f"{url}/v1/jobs", CAPTURE.read_bytes())["id"]
            until(lambda url=url, job=job: call(f"{url}/v1/jobs/{job}")["state"] == "done")
            seen.append(job)
    assert len(set(seen)) == 3


def test_the_image_says_what_it_is_and_holds_nothing_that_builds(engine):
    image = engine.inspect("tapline:2")
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.1.1"
    assert labels["org.opencontainers.image.licenses"] == "BSD-3-Clause"
    own_mb = (image["Size"] - engine.inspect(f"python:{PYTHON}")["Size"]) / 1e6
    assert own_mb < OWN_MB, f"{own_mb:.0f} MB beside the base"
    share = "/opt/tapline/share/tapline"
    assert "BSD 3-Clause" in in_image(engine, "cat", f"{share}/LICENSE")
    assert "`flow-protocols` 3" in in_image(engine, "cat", f"{share}/NOTICE.md")
    cards = in_image(engine, "find", "/opt/tapline", "-path", "*/models/zoo/*", "-name", "README.md")
    assert len(cards.splitlines()) == 3
    bill = json.loads(in_image(engine, "cat", f"{share}/sbom.cdx.json"))
    names = {part["name"] for part in bill["components"]}
    assert {"tapline-traffic", "onnxruntime", "numpy"} <= names
    assert "pip" not in names
    builders = ["-name", "pip", "-o", "-name", "gcc*", "-o", "-name", ".cache"]
    found = in_image(engine, "find", "/opt/tapline", "(", *builders, ")")
    assert found == ""


def test_a_second_build_takes_the_layer_of_libraries_from_the_first(engine):
    first, second = (engine.inspect(f"tapline:{tag}")["RootFS"]["Layers"] for tag in (1, 2))
    assert first[:-1] == second[:-1]
    assert first[-1] != second[-1]
