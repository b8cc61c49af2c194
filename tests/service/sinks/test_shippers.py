"""The configurations of programs that ship the EVE file: they are read as what they are, and rely on fields there are.

The programs themselves are not run here.
"""

import json
import re
import tomllib
from datetime import datetime

import pytest
import yaml

from tapline.service.sinks.eve_records import eve_alert, eve_flow, eve_trace
from tests.paths import ROOT
from tests.service.sinks.records import ALERT, FLOW, TRACE, VERDICT

RECORDS = [json.loads(line) for line in (eve_flow(1, "s", FLOW, VERDICT), eve_trace(1, TRACE), eve_alert(ALERT))]
EVE_PATH = "/var/log/tapline/eve.json"


def has(record, path):
    """Whether there is a field at a path with dots."""
    for name in path.split("."):
        if not isinstance(record, dict) or name not in record:
            return False
        record = record[name]
    return True


def test_filebeat():
    config = yaml.safe_load((ROOT / "deploy/filebeat.yml").read_text())
    (module,) = config["filebeat.modules"]
    assert (module["module"], module["eve"]["enabled"]) == ("suricata", True)
    assert module["eve"]["var.paths"] == [f"{EVE_PATH}*"]
    excluded = [re.compile(pattern) for pattern in module["eve"]["input"]["exclude_files"]]
    names = [f"{EVE_PATH}.20260101T000000000000Z{end}" for end in ("", ".gz", ".zst", ".gz.part")]
    assert [any(each.search(name) for each in excluded) for name in names] == [False, True, True, True]
    (copied,) = config["processors"][0]["copy_fields"]["fields"]
    assert copied["from"].startswith("suricata.eve.")
    assert any(has(record, copied["from"].removeprefix("suricata.eve.")) for record in RECORDS)


def test_vector():
    config = tomllib.loads((ROOT / "deploy/vector.toml").read_text())
    assert config["sources"]["tapline"] == {"type": "file", "include": [EVE_PATH]}
    names = {*config["sources"], *config["transforms"], *(f"by_type.{name}" for name in ("alerts", "verdicts"))}
    parts = [*config["transforms"].values(), *config["sinks"].values()]
    assert all(set(part["inputs"]) <= names for part in parts)
    source = config["transforms"]["records"]["source"]
    (form,) = re.findall(r'parse_timestamp!\(\.timestamp, format: "(.*)"\)', source)
    for record in RECORDS:
        assert datetime.strptime(record["timestamp"], form.replace("%.f", ".%f")).tzinfo is not None
    routes = config["transforms"]["by_type"]["route"]
    named = re.findall(r'\.(\w+) == "(\w+)"', " ".join(routes.values()))
    assert {name for name, _ in named} == {"event_type"}
    assert {value for _, value in named} == {record["event_type"] for record in RECORDS}


def test_logstash():
    text = re.sub(r"(?m)#.*$", "", (ROOT / "deploy/logstash.conf").read_text())
    assert re.findall(r"(?m)^(\w+) \{", text) == ["input", "filter", "output"]
    for opened, closed in ("{}", "[]", "()"):
        assert text.count(opened) == text.count(closed)
    assert f'path => "{EVE_PATH}"' in text
    assert 'codec => "json"' in text
    (condition,) = re.findall(r'if \[(\w+)\] == "(\w+)"', text)
    assert condition == ("event_type", "alert")
    (field,) = re.findall(r'match => \["(\w+)", "ISO8601"\]', text)
    assert all(datetime.fromisoformat(record[field]).tzinfo is not None for record in RECORDS)


@pytest.mark.parametrize("name", ["filebeat.yml", "vector.toml", "logstash.conf"])
def test_no_secret_stands_in_them(name):
    text = (ROOT / "deploy" / name).read_text()
    given = re.findall(r'(?:api_key|password)\s*(?:=>|=|:)\s*"([^"]*)"', text)
    assert given
    assert all(re.fullmatch(r"\$\{\w+\}", value) for value in given)
