"""A service that is set up by a file alone says which file it read, and what computes."""

import json

import pytest

from tests.service.api.served import Server


@pytest.mark.whole
def test_a_service_is_set_up_by_a_file(tmp_path, checkpoint_dir):
    file = tmp_path / "tapline.toml"
    file.write_text("traces = ['none']\ndashboard = 'off'\nhistory = 'none'\nmax_uploads = 3\napi_key = 'k3y'\n")
    file.chmod(0o600)
    with Server(tmp_path, checkpoint_dir, "--config", str(file), env={"TAPLINE_MAX_UPLOADS": "2"}) as server:
        [read] = [line for line in server.log.splitlines() if "event=configuration" in line]
        assert f"file={file}" in read
        [serving] = [line for line in server.log.splitlines() if "event=serving" in line]
        assert "provider=CPUExecutionProvider" in serving
        assert "max_uploads=2" in server.log  # the environment counts before the file
        assert "k3y" not in server.log
        assert server.ask("GET", "/v1/models")[0] == 401
        status, body = server.ask("GET", "/v1/models", headers={"X-API-Key": "k3y"})
        assert status == 200
        providers = {model["name"]: model["provider"] for model in json.loads(body)["models"] if model["version"]}
        assert providers == {"random": "CPUExecutionProvider"}
        assert server.stop() == 0
