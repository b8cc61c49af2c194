"""What Zeek calls a connection, as a label of the flow that has the same endpoints in the same capture."""

import msgspec
import pytest

from tapline.models.flow import Flow, flow_to_line
from tapline.training.data.labels import LabelError
from tapline.training.data.zeek_services import label_of_service, read_services, services_of
from tests.training.command import tapline_train

FIELDS = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service")
LABELS = ["DNS", "HTTP", "TLS"]


def flow(port, proto="tcp"):
    return Flow("C1", 0, 0, "192.0.2.1", 4000 + port, "192.0.2.2", port, proto, 1, 0, [4], b"text", b"")


def write_log(folder, *rows):
    folder.mkdir(parents=True)
    lines = ["#separator \\x09", "#fields\t" + "\t".join(FIELDS)]
    lines += [f"0.5\tC{n}\t192.0.2.1\t{4000 + port}\t192.0.2.2\t{port}\t{proto}\t{service}"
              for n, (port, proto, service) in enumerate(rows)]  # fmt: skip
    (folder / "conn.log").write_text("\n".join(lines) + "\n")


def test_what_is_carried_counts():
    assert [label_of_service(service) for service in ("ssl", "ssl,smtp", "http,websocket", "-", "", "new")] == [
        "TLS", "SMTP", "HTTP", None, None, None,
    ]  # fmt: skip


def test_flows_are_found_by_capture_and_endpoints(tmp_path):
    write_log(
        tmp_path / "logs" / "a.ndjson",
        (80, "tcp", "http"),
        (25, "tcp", "smtp"),
        (53, "udp", "dns"),
        (5353, "udp", "dns"),
    )
    write_log(tmp_path / "logs" / "deep" / "b.ndjson")
    captures = tmp_path / "captures"
    for name, flows in {
        "a": [flow(80), flow(25), flow(53, "udp"), flow(81), flow(5353, "udp")], "deep/b": [flow(80)], "c": [flow(80)],
    }.items():  # fmt: skip
        path = captures / f"{name}.ndjson"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(msgspec.json.encode(flow_to_line(each)) + b"\n" for each in flows))
    tapline_train("extract", captures, "--out", tmp_path / "features")
    said = services_of(read_services([tmp_path / "logs"]), [tmp_path / "features"], [*LABELS, "MDNS"])
    assert said.tolist() == [1, 4, 0, 4, 3, 5, 4]  # SMTP is no label; c has no log; b has one, without the connection


def test_a_folder_without_logs_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"no conn\.log below it"):
        read_services([tmp_path])
    (tmp_path / "conn.log").write_text("#separator \\x09\n#fields\tts\tuid\n")
    with pytest.raises(LabelError, match=r"conn\.log: no field"):
        read_services([tmp_path])
