"""`classify` and `features` give results away: reports, without payload, with other addresses; in every format."""

import json
import re

import pytest

from tests.paths import DATA
from tests.service.command.cli_runner import tapline

CAPTURE = DATA / "captures" / "android.pcap"
REAL = ("192.168.2.16", "216.239.38.120", "4c:6a:f6:9f:f6:27", "fe80::4e6a")
KEY = "00112233445566778899aabbccddeeff" * 2

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(KEY)
    return path


def flows_of(*arguments):
    result = tapline("classify", CAPTURE, "-f", "ndjson", *arguments)
    assert result.returncode == 0, result.stderr
    return [line for line in map(json.loads, result.stdout.splitlines()) if "trace" not in line]


def test_without_content_all_else_is_the_same():
    whole, bare = flows_of(), flows_of("--no-content")
    assert any(flow["orig_bytes"] for flow in whole)
    for flow in whole:
        flow |= {"orig_bytes": "", "resp_bytes": "", "heads": [], "heads_kind": "none", "link_type": 0}
    assert bare == whole


@pytest.mark.parametrize("format_", ["table", "json", "ndjson", "csv"])
def test_no_real_address_is_in_any_format(format_, key, tmp_path):
    page = tmp_path / "report.html"
    options = ("--anonymise", "--anonymise-key", key, "-f", format_, "--report", page, "--limit", "0")
    result = tapline("classify", CAPTURE, *options)
    assert result.returncode == 0, result.stderr
    for text in (result.stdout, page.read_text()):
        assert [address for address in REAL if address in text] == []
    other = json.loads(tapline("classify", CAPTURE, "-f", "json", *options[:3]).stdout)
    subjects = {trace["subject"] for trace in other["traces"]}
    ends = {flow[end] for flow in other["flows"] for end in ("orig_h", "resp_h")}
    assert ends & set(re.findall(r"[\d.]+\d", page.read_text()))
    assert subjects & ends  # traces by address and flows have one mapping
    assert {flow["uid"] for trace in other["traces"] for flow in trace["top_flows"]} <= {
        flow["uid"] for flow in other["flows"]
    }


def test_a_run_without_a_key_has_one_of_its_own():
    first, second = (flows_of("--anonymise")[0]["orig_h"] for _ in range(2))
    assert first != second


def test_features_are_given_away_too(key):
    result = tapline("features", CAPTURE, "--anonymise", "--anonymise-key", key, "--tokens")
    assert [address for address in REAL if address in result.stdout] == []
    line = json.loads(result.stdout.splitlines()[0])
    assert (line["orig_bytes"], line["heads"]) == ("", [])
    bare = tapline("features", CAPTURE, "--no-content", "--tokens").stdout
    assert line["bytes_types"] == json.loads(bare.splitlines()[0])["bytes_types"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--anonymise-key", "KEY"), "give both"),
        (("--anonymise", "--anonymise-key", "nowhere"), "nowhere: cannot read the key"),
        (("--anonymise", "--anonymise-key", CAPTURE), "expected a key of 64 hex digits"),
        (("--report", CAPTURE), "is an input, too"),
        (("--report", "a.html", "-o", "./a.html"), "give two files"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(options, said, key):
    result = tapline("classify", CAPTURE, *(key if each == "KEY" else each for each in options))
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.parametrize(
    "path", ["ndpi/fuzz-2006-09-29-28586.pcap", "ndpi/443-chrome.pcap", "zeek-traces/ip6_esp.trace", "odd"]
)
def test_odd_captures_have_a_report(path, tmp_path):
    page = tmp_path / "report.html"
    capture = DATA / path if path == "odd" else DATA / "captures" / path
    result = tapline("classify", capture, "--report", page, "--limit", "5", timeout=120)
    assert "Traceback" not in result.stderr
    assert "What was read" in page.read_text()
