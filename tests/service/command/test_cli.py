"""The command line on real captures and bad input: status 0, 1 or 2, never a traceback."""

import csv
import gzip
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tapline.service.command.terminal import endpoint_text
from tapline.service.settings import ENV_PREFIX, Settings
from tests.paths import ROOT
from tests.service.command.cli_runner import CODE, tapline
from tests.service.sources import builders as b

pytestmark = pytest.mark.whole

CAPTURE = ROOT / "tests" / "data" / "captures" / "android.pcap"
BUILTIN = ("--reader", "builtin")
NO_TRACES = ("--traces", "none")


@pytest.fixture
def classify(checkpoint_dir):
    def run(*arguments, **options):
        result = tapline("classify", *arguments, *BUILTIN, *NO_TRACES, "--checkpoint", checkpoint_dir, **options)
        assert "Traceback" not in result.stderr
        return result

    return run


def test_table(classify):
    result = classify(CAPTURE, "--limit", "3")
    assert result.returncode == 0
    assert "By label" in result.stdout
    assert "more flows: --limit 0 shows all" in result.stdout
    assert "flows classified by random 1" in result.stdout
    assert "\x1b" not in result.stdout


def test_limit_shows_the_flows_that_start_first(classify):
    flows = json.loads(classify(CAPTURE, "-f", "json").stdout)["flows"]
    first = sorted(flows, key=lambda flow: flow["start_us"])[:5]
    assert first != flows[:5], "flows come when they end, so that the first to come are others"
    table, _, end = classify(CAPTURE, "--limit", "5").stdout.partition("… and ")
    rows = [line.split() for line in table.splitlines() if line.rstrip().endswith((" B", " KiB"))]
    assert [row[-4] for row in rows] == [endpoint_text(flow["resp_h"], flow["resp_p"], flow["proto"]) for flow in first]
    assert end.startswith(f"{len(flows) - 5} flows that started later: --limit 0 shows all")


def test_formats_say_the_same(classify):
    flows = json.loads(classify(CAPTURE, "-f", "json").stdout)["flows"]
    lines = [json.loads(line) for line in classify(CAPTURE, "-f", "ndjson").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(classify(CAPTURE, "-f", "csv").stdout)))
    assert flows == lines
    assert [(row["uid"], row["label"], row["server_name"]) for row in rows] == [
        (flow["uid"], flow["verdict"]["label"], flow["server_name"]) for flow in flows
    ]
    assert sum(flow["server_name"] == "captive.apple.com" for flow in flows) == 2  # the question and the request
    assert set(flows[0]["verdict"]) == {
        "label", "nearest", "confidence", "unknown", "alternatives", "model", "version", "final",
    }  # fmt: skip


def test_scores_min_packets_and_output(classify, tmp_path):
    target = tmp_path / "out.json"
    assert classify(CAPTURE, "-f", "json", "--scores", "--min-packets", "5", "-o", target).stdout == ""
    body = json.loads(target.read_text())
    assert set(body["flows"][0]["verdict"]["scores"]) == {"dns", "http", "tls"}
    assert all(flow["up"] + flow["down"] >= 5 for flow in body["flows"])
    summary = body["summary"]
    assert summary["flows"] == summary["classified"] + summary["below_min_packets"] + summary["without_payload"]
    assert summary["below_min_packets"] > 0


def test_features_come_back_as_input(classify, tmp_path):
    features = tapline("features", CAPTURE, *BUILTIN)
    assert features.returncode == 0
    saved = tmp_path / "flows.ndjson"
    saved.write_text(features.stdout)
    direct = json.loads(classify(CAPTURE, "-f", "json").stdout)["flows"]
    for result in (classify(saved, "-f", "json"), classify("-", "-f", "json", stdin=features.stdout.encode())):
        again = json.loads(result.stdout)["flows"]
        assert [flow["uid"] for flow in again] == [flow["uid"] for flow in direct]
        for one, other in zip(again, direct, strict=True):
            assert one["verdict"]["confidence"] == pytest.approx(other["verdict"]["confidence"], abs=1e-4)


def test_features_with_tokens_and_heads():
    flows = [json.loads(line) for line in tapline("features", CAPTURE, *BUILTIN, "--tokens").stdout.splitlines()]
    flow = max(flows, key=lambda found: found["up"])
    assert flow["ps_tokens"][0] == flow["bytes_tokens"][0] == 2
    assert flow["ps_tokens"][-1] == flow["bytes_tokens"][-1] == 3
    assert len(flow["ps_tokens"]) == len(flow["payload_lengths"]) + 2
    assert len(flow["bytes_types"]) == len(flow["bytes_tokens"])
    assert flow["heads_kind"] == "header"
    assert flow["heads"][0]["gap_us"] == 0
    assert flow["community_id"].startswith("1:")


def test_standard_input_and_several_files(classify):
    result = classify("-", CAPTURE, "-f", "json", stdin=CAPTURE.read_bytes())
    names = [entry["name"] for entry in json.loads(result.stdout)["summary"]["inputs"]]
    assert (result.returncode, names) == (0, ["-", str(CAPTURE)])


def test_a_bad_input_costs_itself_alone(classify, tmp_path):
    empty = tmp_path / "empty.pcap"
    empty.touch()
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(CAPTURE.read_bytes()[:20_000])
    result = classify(tmp_path / "missing.pcap", empty, ROOT / "pyproject.toml", cut, CAPTURE, "-f", "json")
    assert result.returncode == 1
    inputs = json.loads(result.stdout)["summary"]["inputs"]
    assert [bool(entry["error"]) for entry in inputs] == [True, True, True, False, False]
    assert "No such file" in inputs[0]["error"]
    assert "empty" in inputs[1]["error"]
    assert "ends in the middle of packet" in inputs[3]["warning"]
    assert inputs[3]["flows"] > 5
    assert inputs[4]["warning"] is None
    assert len(result.stderr.splitlines()) == 4


def test_bad_lines_cost_themselves_alone(classify, tmp_path):
    good = tapline("features", CAPTURE, *BUILTIN).stdout.splitlines()[:3]
    path = tmp_path / "flows.ndjson"
    path.write_text("\n".join([good[0], '{"uid": 5}', good[1], "{" + "x" * 70_000, good[2]]))
    result = classify(path, "-f", "json")
    assert len(json.loads(result.stdout)["flows"]) == 3
    assert "2 of its lines are not flows; the first: line 2: Expected `str`, got `int` - at `$.uid`" in result.stderr


@pytest.mark.parametrize("directory", ["nowhere", "tests"])
def test_a_missing_checkpoint(directory):
    result = tapline("classify", CAPTURE, *BUILTIN, "--checkpoint", ROOT / directory)
    assert (result.returncode, result.stdout) == (2, "")
    assert "not a checkpoint" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("classify",), ("classify", "--format", "xml", "x"), ("nothing",), ("watch",)])
def test_usage(arguments):
    result = tapline(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "watch"])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("absent.pcap", None, "cannot read it: No such file or directory"),
        ("empty.pcap", b"", "the capture is empty; expected a pcap or pcapng file"),
        (
            "text.txt",
            b"some text",
            "expected a pcap or pcapng file, plain or compressed with gzip or zstd; this is neither",
        ),
        (".", None, "cannot read it: Is a directory"),
    ],
)
def test_a_replay_of_no_capture_ends_with_a_sentence(tmp_path, command, name, content, problem):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = tapline(command, "--replay", path)
    assert (result.returncode, result.stderr.splitlines()) == (1, [f"{path}: {problem}"])
    assert result.stdout == ""  # no table of nothing


def test_a_replay_is_alone():
    for command in ("serve", "watch"):
        both = tapline(command, "--replay", CAPTURE, "--zeek", "ws://127.0.0.1:9")
        assert both.returncode == 2
        assert "a replay beside live traffic" in both.stderr


def test_zeek_missing_is_explained(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments in (("watch", "--interface", "lo"), ("features", CAPTURE, "--reader", "zeek")):
        result = tapline(*arguments)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert "zeek" in result.stderr.lower()


def test_every_setting_is_a_documented_flag():
    text = " ".join(tapline("serve", "--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert f"{ENV_PREFIX}{name.upper()}" in text
        assert field.description


def test_only_loopback_without_a_key(monkeypatch):
    monkeypatch.setenv("TAPLINE_HOST", "0.0.0.0")
    result = tapline("serve")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "listening on 0.0.0.0 would let others in: give keys (--keys-file, or one by --api-key), or --allow-remote"
    )
    assert tapline("serve", "--host", "127.0.0.1", "--port", "99999").returncode == 2


def test_serve_replays_and_ends_with_status_0_on_sigterm(checkpoint_dir):
    command = [
        sys.executable, "-c", CODE, "serve", "--port", "0", "--checkpoint", str(checkpoint_dir),
        "--replay", str(CAPTURE), "--speed", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        seen = ""
        while "replay finished" not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode == 0, rest
    assert "event=stopped" in rest
    assert "flows=" in seen


def test_an_input_is_never_written_over(classify, tmp_path):
    copy = tmp_path / "copy.pcap"
    copy.write_bytes(CAPTURE.read_bytes())
    result = classify(copy, "-o", copy)
    assert (result.returncode, copy.read_bytes()) == (2, CAPTURE.read_bytes())
    assert "is an input, too" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["copy.pcap"]


@pytest.mark.parametrize("command", ["classify", "features"])
def test_a_full_disk_is_one_sentence(command):
    result = tapline(command, CAPTURE, *BUILTIN, "-o", "/dev/full")
    assert (result.returncode, result.stderr.strip()) == (1, "cannot write the result: No space left on device")


def test_nothing_is_looked_up_outside():
    code = "import tapline.service.engines.onnx_engine, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


def test_lists_in_the_environment_have_commas(monkeypatch):
    monkeypatch.setenv("TAPLINE_ZEEK", "ws://127.0.0.1:1, ws://127.0.0.1:2")
    monkeypatch.setenv("TAPLINE_SHARDS", "1")
    settings = Settings()
    assert (settings.zeek, settings.shards) == (["ws://127.0.0.1:1", "ws://127.0.0.1:2"], ["1"])


def test_a_port_in_use(checkpoint_dir):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = tapline("serve", "--port", port, "--checkpoint", checkpoint_dir)
    assert result.returncode == 1
    assert "address already in use" in result.stderr


def test_curl_gets_an_answer_from_a_running_server(checkpoint_dir):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "serve", "--port", str(port), "--checkpoint", str(checkpoint_dir)],
        cwd=ROOT, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/v1/classify/pcap"
        command = ["curl", "-sS", "--max-time", "30", "-F", f"file=@{CAPTURE}", url]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=40).stdout)
        assert answer["summary"]["classified"] == len(answer["flows"]) > 50
    finally:
        process.terminate()
        assert process.wait(20) == 0


ARP_ALONE = b.pcap([b.Packet(n, b.ethernet(bytes(46), 0x0806)) for n in range(3)])


@pytest.fixture
def mixed(tmp_path):
    """A capture of one flow among packets without one."""
    datagram = b.ethernet(b.ipv4(17, b.udp(4000, 53, b"payload")))
    path = tmp_path / "mixed.pcap"
    path.write_bytes(b.pcap([b.Packet(n, frame) for n, frame in enumerate((bytes(9), datagram, *[ARP_FRAME] * 2))]))
    return path


ARP_FRAME = b.ethernet(bytes(46), 0x0806)


def test_packets_without_a_flow_are_told_with_their_reasons(classify, mixed):
    told = f"{mixed}: without a flow, of 4 packets: 2 not IP, 1 link layer cut"
    table = classify(mixed)
    assert table.returncode == 0
    assert told in table.stdout
    for format_ in ("csv", "ndjson"):
        result = classify(mixed, "-f", format_)
        assert result.returncode == 0
        assert told in result.stderr
        assert told not in result.stdout
    (entry,) = json.loads(classify(mixed, "-f", "json").stdout)["summary"]["inputs"]
    assert entry["skipped"] == {"not IP": 2, "link layer cut": 1}
    features = tapline("features", mixed)
    assert features.returncode == 0
    assert features.stderr == told + "\n"
    assert len(features.stdout.splitlines()) == 1


def test_a_run_in_which_no_packet_was_understood_fails(classify, mixed, tmp_path):
    path = tmp_path / "arp.pcap"
    path.write_bytes(ARP_ALONE)
    told = f"{path}: without a flow, of 3 packets: 3 not IP"
    for format_, stream in (("table", "stdout"), ("csv", "stderr"), ("ndjson", "stderr"), ("json", "stdout")):
        result = classify(path, "-f", format_)
        assert result.returncode == 1
        assert (told if format_ != "json" else '"not IP":3') in getattr(result, stream)
    features = tapline("features", path)
    assert (features.returncode, features.stdout, features.stderr) == (1, "", told + "\n")
    assert classify(path, mixed).returncode == 0
    assert tapline("features", path, mixed).returncode == 0


def test_a_capture_without_packets_is_no_failure(classify, tmp_path):
    path = tmp_path / "empty.pcap"
    path.write_bytes(b.pcap([]))
    assert classify(path).returncode == 0
    assert tapline("features", path).returncode == 0


def test_a_capture_that_cannot_be_read_hides_no_other(classify, mixed, tmp_path):
    damaged = tmp_path / "damaged.pcap.gz"
    damaged.write_bytes(gzip.compress(mixed.read_bytes() * 50)[:-12])
    other = tmp_path / "other"
    other.write_bytes(b"no capture at all")
    result = classify(other, damaged, mixed, "-f", "json")
    assert result.returncode == 1
    inputs = json.loads(result.stdout)["summary"]["inputs"]
    assert [entry["flows"] for entry in inputs] == [0, 1, 1]
    assert "expected a pcap or pcapng file" in inputs[0]["error"]
    assert inputs[1]["warning"]
