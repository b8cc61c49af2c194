"""docker-compose.yml is brought up: the service, Prometheus of Debian under the public name, a real Zeek beside."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deployment.engine import needs_engine
from tests.deployment.test_images import CAPTURE, until
from tests.paths import ROOT

pytestmark = [pytest.mark.whole, pytest.mark.zeek, pytest.mark.timeout(2400), needs_engine]

COMPOSE = ROOT / "docker-compose.yml"
PLAYER = Path(__file__).with_name("play.py")
PROMETHEUS = "http://127.0.0.1:9090/api/v1"

needs_the_rest = pytest.mark.skipif(
    not all(map(shutil.which, ("docker-compose", "zeek", "ip", "curl", "unshare"))),
    reason="needs docker-compose, zeek, ip, curl and unshare",
)


@pytest.fixture
def composed(engine):
    """What runs docker-compose, in a network of its own with a wire: tap0 is watched, feed0 fed."""
    image = yaml.safe_load(COMPOSE.read_text())["services"]["prometheus"]["image"]
    engine.make_base(image, ["prometheus"], ['ENTRYPOINT ["prometheus"]'])
    engine.docker("tag", "tapline:1", "tapline:cpu")
    engine.stop()
    engine.start(apart=True)

    def compose(*arguments):
        command = ["docker-compose", "--file", COMPOSE, "--project-name", "tapline", *arguments]
        done = engine.run(engine.inside(*command), env={"TAPLINE_INTERFACE": "tap0"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        subprocess.run(engine.inside("ip", "link", "add", "tap0", "type", "veth", "peer", "name", "feed0"), check=True)
        for name in ("tap0", "feed0"):
            subprocess.run(engine.inside("ip", "link", "set", name, "up"), check=True)
        yield compose
    finally:
        compose("down", "--volumes")
        engine.stop()
        engine.start()


@needs_the_rest
def test_live_flows_of_a_real_zeek_are_in_prometheus(engine, composed, tmp_path):
    def ask(path):
        done = engine.run(engine.inside("curl", "--silent", "--globoff", f"{PROMETHEUS}/{path}"))
        return json.loads(done.stdout)["data"] if done.stdout else None

    def value(query):
        found = (ask(f"query?query={query}") or {"result": []})["result"]
        return float(found[0]["value"][1]) if found else 0.0

    composed("up", "--detach", "--no-deps", "tapline", "prometheus")
    command = engine.inside("zeek", "-C", "-i", "tap0", ROOT / "zeek" / "scripts")
    with (tmp_path / "zeek.log").open("w") as log, subprocess.Popen(command, cwd=tmp_path, stderr=log) as zeek:
        try:
            until(lambda: value("tapline_bus_connected") == 1, 180)
            subprocess.run(engine.inside(sys.executable, PLAYER, CAPTURE, "feed0"), check=True, timeout=120)
            until(lambda: value("sum(tapline_verdicts_total)") > 50, 180)
        finally:
            zeek.terminate()
            zeek.wait(60)
    targets = ask("targets")["activeTargets"]
    assert [(target["labels"]["job"], target["health"]) for target in targets] == [("tapline", "up")]
    loaded = [rule["name"] for group in ask("rules")["groups"] for rule in group["rules"]]
    written = yaml.safe_load((ROOT / "deploy" / "prometheus" / "tapline-rules.yml").read_text())["groups"]
    assert loaded == [rule["alert"] for group in written for rule in group["rules"]]
    until(lambda: value('ALERTS{alertname="TaplineSensorAway",alertstate="pending"}'), 60)  # Zeek has gone
