"""`tapline keys` and the keys of other commands: shown once, kept as hashes, and seen by nobody in the process list."""

import stat
import sys
from pathlib import Path

import pytest

from tapline.service.access.keys import digest_of
from tests.service.api.served import Server
from tests.service.command.cli_runner import tapline

pytestmark = pytest.mark.whole


def test_a_key_is_shown_once_and_revoked_without_a_restart(checkpoint_dir, tmp_path):
    path = tmp_path / "keys"
    made = tapline("keys", "add", "--name", "grafana", "--scope", "read", path)
    (key,) = made.stdout.split()
    assert (made.returncode, made.stderr) == (0, "")
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Server(tmp_path, checkpoint_dir, "--traces", "none", "--dashboard", "off", "--keys-file", path) as server:

        def status(with_key):
            return server.ask("GET", "/v1/models", headers={"X-API-Key": with_key})[0]

        assert (server.ask("GET", "/v1/models")[0], status(key)) == (401, 200)
        listed = tapline("keys", "list", path)
        assert "grafana" in listed.stdout
        assert key not in listed.stdout
        (tmp_path / "key").write_text(f"{key}\n")
        url = f"http://127.0.0.1:{server.port}"
        models = tapline("models", "list", "--url", url, "--api-key-file", tmp_path / "key")
        assert "random" in models.stdout
        refused = tapline("models", "load", "random", "--url", url, "--api-key-file", tmp_path / "key")
        assert (refused.returncode, "a key of the scope admin" in refused.stderr) == (1, True)
        with server.connect(f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n\r\n".encode()):
            assert tapline("keys", "remove", "--name", "grafana", path).returncode == 0
            server.wait(lambda: status(key) == 401)
        assert "Traceback" not in server.log
        assert key not in server.log


def test_a_stream_of_a_revoked_key_ends(checkpoint_dir, tmp_path):
    path = tmp_path / "keys"
    key = tapline("keys", "add", "--name", "siem", "--scope", "read", path).stdout.strip()
    often = "import tapline.service.api.stream_route as route; route.HEARTBEAT_SECONDS = 0.1"
    flags = ("--traces", "none", "--dashboard", "off", "--keys-file", path)
    with Server(tmp_path, checkpoint_dir, *flags, before=often) as server:
        asked = f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n\r\n".encode()
        with server.connect(asked) as client:
            said = b""
            while b": still here" not in said:
                said += client.recv(4096)
            tapline("keys", "remove", "--name", "siem", path)
            while not said.endswith(b"0\r\n\r\n"):  # the last chunk (RFC 9112, 7.1)
                piece = client.recv(4096)
                assert piece, said
                said += piece
        assert "Traceback" not in server.log


def test_without_a_file_the_line_for_the_environment_is_told(checkpoint_dir, tmp_path):
    made = tapline("keys", "add", "--name", "ci", "--scope", "classify")
    key, line = made.stdout.strip(), made.stderr.strip().partition(": ")[2]
    assert line == f"ci classify sha256:{digest_of(key.encode()).hex()}"
    flags = ("--traces", "none", "--dashboard", "off")
    with Server(tmp_path, checkpoint_dir, *flags, env={"TAPLINE_KEYS": line}) as server:
        assert server.ask("GET", "/metrics", headers={"Authorization": f"Bearer {key}"})[0] == 200
        assert server.ask("GET", "/metrics")[0] == 401


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("add", "--name", "a b", "--scope", "read", "keys"), 1, "expected a name of at most 64 letters"),
        (("add", "--name", "a", "--scope", "all", "keys"), 2, "Invalid value for '--scope'"),
        (("list", "none"), 1, "cannot be read: no such file"),
        (("remove", "--name", "a", "none"), 1, "cannot be"),
        (("add", "--name", "a", "--scope", "read", "none/keys"), 1, "cannot be written: no such file"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, arguments, status, said):
    *first, last = arguments
    found = tapline("keys", *first, tmp_path / last)
    assert (found.returncode, found.stdout) == (status, "")
    assert said in found.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_key_of_the_command_line_is_not_in_the_process_list(checkpoint_dir, tmp_path):
    flags = ("--traces", "none", "--dashboard", "off", "--api-key", "s3cret-key")
    with Server(tmp_path, checkpoint_dir, *flags) as server:
        shown = Path(f"/proc/{server.process.pid}/cmdline").read_text()
        assert "s3cret" not in shown + server.log
        assert "--api-key\0**********\0" in shown


def test_key_files_of_clients_that_cannot_be_read(tmp_path):
    missing = tapline("models", "list", "--api-key-file", tmp_path / "none")
    assert (missing.returncode, "cannot be read" in missing.stderr) == (1, True)
    (tmp_path / "empty").write_text("\n")
    empty = tapline("models", "list", "--api-key-file", tmp_path / "empty")
    assert (empty.returncode, "the API key is empty" in empty.stderr) == (2, True)
