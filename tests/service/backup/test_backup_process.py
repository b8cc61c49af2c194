"""The commands `tapline backup` and `tapline restore` beside real services, as the page of deployment has them run."""

import json
import shutil
import subprocess

import pytest

from tests.paths import DATA
from tests.service.api.served import Server
from tests.service.backup.test_backup import write_history
from tests.service.command.cli_runner import tapline
from tests.service.history.postgres import BINARIES, server

pytestmark = pytest.mark.whole

CAPTURE = DATA / "captures" / "android.pcap"


def asked(service, path):
    status, body = service.ask("GET", path)
    assert status == 200
    return json.loads(body)


def flags(folder, traces_dir):
    kept_below = ["--data-dir", folder / "data", "--state-dir", folder / "state"]
    return kept_below, [*kept_below, "--history", "sqlite", "--traces", traces_dir]


def test_a_service_is_backed_up_while_it_runs_and_comes_back_elsewhere(checkpoint_dir, mac_traces_dir, tmp_path):
    old, serving_old = flags(tmp_path / "old", mac_traces_dir)
    new, serving_new = flags(tmp_path / "new", mac_traces_dir)
    backup = tmp_path / "backup.tar.zst"
    with Server(tmp_path, checkpoint_dir, *serving_old, "--replay", CAPTURE, "--speed", "0") as service:
        status, body = service.ask("POST", "/v1/jobs", CAPTURE.read_bytes())
        assert status == 202
        job = json.loads(body)["id"]
        service.wait(lambda: asked(service, f"/v1/jobs/{job}")["state"] == "done")
        service.wait(lambda: len(asked(service, "/v1/flows?limit=500")["flows"]) == 66)
        done = tapline("backup", backup, *old, "--history", "sqlite")
        assert done.returncode == 0, done.stderr
        assert f"{backup}: the history, jobs: 1" in done.stderr
        refused = tapline("restore", backup, *old, "--history", "sqlite", "--replace")
        assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
        flows = asked(service, "/v1/flows?limit=500")["flows"]
        result = service.ask("GET", f"/v1/jobs/{job}/result?format=ndjson")
        assert service.stop() == 0
    done = tapline("restore", backup, *new, "--history", "sqlite")
    assert done.returncode == 0, done.stderr
    assert "restored the history, jobs: 1" in done.stderr
    with Server(tmp_path, checkpoint_dir, *serving_new) as service:
        assert asked(service, "/v1/flows?limit=500")["flows"] == flows
        assert service.ask("GET", f"/v1/jobs/{job}/result?format=ndjson") == result
        assert service.stop() == 0
    again = tapline("restore", backup, *new, "--history", "sqlite", "--replace")
    assert again.returncode == 0, again.stderr
    assert f"what was there before lies in {tmp_path / 'new' / 'data'}/.before-restore-" in again.stderr


def test_own_models_come_back_and_are_found(checkpoint_dir, tmp_path):
    shutil.copytree(checkpoint_dir, tmp_path / "models" / "random" / "1")
    backup = tmp_path / "backup.tar.zst"
    places = ["--data-dir", tmp_path / "data", "--history", "none"]
    done = tapline("backup", backup, *places, "--repository", tmp_path / "models")
    assert (done.returncode, "models: 1" in done.stderr) == (0, True)
    lacking = tapline("restore", backup, *places)
    assert (lacking.returncode, "say with --repository where to" in lacking.stderr) == (1, True)
    done = tapline("restore", backup, *places, "--repository", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "models" / "random" / "1").iterdir():
        assert (tmp_path / "new" / "random" / "1" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.postgres
@pytest.mark.skipif(not BINARIES, reason="needs PostgreSQL's server")
def test_a_history_in_postgresql_is_kept_by_its_own_tools(tmp_path):
    with server() as postgres:
        url = postgres.database()
        write_history(url, 3)
        place = ["--data-dir", tmp_path / "data", "--history", url]
        done = tapline("backup", tmp_path / "backup", *place)
        assert (done.returncode, "pg_dump" in done.stderr) == (0, True)
        dump, plain = tmp_path / "history.dump", url.replace("+psycopg", "")
        subprocess.run([BINARIES[-1] / "pg_dump", "--format=custom", f"--file={dump}", plain], check=True, timeout=60)
        other = postgres.database()
        restored = ["--exit-on-error", "--no-owner", f"--dbname={other.replace('+psycopg', '')}"]
        subprocess.run([BINARIES[-1] / "pg_restore", *restored, dump], check=True, timeout=60)
        shown = tapline("history", "show", "--history", other)
    assert (shown.returncode, shown.stdout.splitlines()[0].startswith("flows: 3,")) == (0, True), shown.stderr
