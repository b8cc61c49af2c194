"""The compose file keeps what the service's settings promise."""

import yaml

from tests.paths import ROOT

COMPOSE = ROOT / "docker-compose.yml"


def test_uploads_have_room():
    """On disk: what captures may take by default is more than should be taken from memory."""
    compose = yaml.safe_load(COMPOSE.read_text())
    service = compose["services"]["tapline"]
    mounts = dict(reversed(volume.split(":")[:2]) for volume in service["volumes"])
    assert mounts["/tmp"] in compose["volumes"]
    assert not any(mount.startswith("/tmp") for mount in service.get("tmpfs", []))
