"""The guide to outputs says what is: parameters, records, outcomes and examples."""

import json
import re

import msgspec
import pytest

from tapline.service.community_id import community_id
from tapline.service.sinks.eve_records import eve_alert, eve_flow, eve_trace
from tapline.service.sinks.output_url import (
    SCHEMES,
    EveOutput,
    KafkaOutput,
    OutputOptions,
    SyslogOutput,
    WebhookOutput,
    parse_output,
)
from tests.paths import ROOT
from tests.service.sinks.records import ALERT, FLOW, TRACE, VERDICT

PAGE = (ROOT / "docs/outputs.md").read_text()
FIXED = {"shown", "path", "transport", "host", "port", "https", "servers", "topic", "tls"}
MADE = {
    "flow": eve_flow(1, "s", FLOW, VERDICT), "tapline_trace": eve_trace(1, TRACE), "alert": eve_alert(ALERT),
}  # fmt: skip


def shape(value):
    """The names and types of a value."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return (
        "number"
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool))
        else type(value)
    )


def without(found, *names):
    return {name: value for name, value in found.items() if name not in names}


def test_every_parameter_is_in_the_table():
    known = {
        name
        for kind in (EveOutput, SyslogOutput, WebhookOutput, KafkaOutput)
        for name in kind.__struct_fields__
        if name not in FIXED
    }
    rows = re.findall(r"(?m)^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \| (?:all|`|over|webhook|network)", PAGE)
    assert {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)} == known


def test_defaults_in_the_table_are_those_of_the_code():
    defaults = parse_output("eve:/a")
    for name in ("rotate_mb", "rotate_hours", "keep", "compress", "early"):
        (row,) = re.findall(rf"(?m)^\| `{name}` \|[^|]*\| `?([^|`]*)`? \|", PAGE)
        assert str(getattr(defaults, name)) == row
    options = dict(zip(OutputOptions.__struct_fields__[::-1], OutputOptions.__struct_defaults__[::-1], strict=False))
    assert f"| {options['queue_records']}, {options['queue_mb']} |" in PAGE
    assert f"| {options['spool_mb']}; 0 for `eve` and `syslog+udp` |" in PAGE


def test_every_scheme_is_named():
    assert all(f"{scheme}:" in PAGE for scheme in SCHEMES)


def test_examples_are_understood():
    urls = re.findall(r"--output '?([^'\s]+)'?", PAGE.split("```console")[2])
    assert len(urls) == 4
    assert all(parse_output(url) for url in urls)


@pytest.mark.parametrize("kind", MADE)
def test_samples_have_the_form_of_records(kind):
    samples = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    (sample,) = [each for each in samples if each["event_type"] == kind]
    made = json.loads(MADE[kind])
    assert shape(without(sample, "tapline")) == shape(without(made, "tapline", "app_proto"))
    optional = ("sensor", "server_name")
    found, expected = sample["tapline"], made["tapline"]
    for each in (found, expected):
        for flow in each.get("top_flows", ()):
            flow.pop("server_name", None)
    assert shape(without(found, *optional)) == shape(without(expected, *optional))


def test_community_ids_of_samples_are_right():
    for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL):
        sample = json.loads(text)
        for record in [sample, *sample["tapline"].get("top_flows", [])]:
            if "community_id" in record:
                ends = msgspec.structs.replace(
                    FLOW,
                    proto=record["proto"].lower(),
                    orig_h=record["src_ip"],
                    orig_p=record["src_port"],
                    resp_h=record["dest_ip"],
                    resp_p=record["dest_port"],
                )
                assert community_id(ends) == record["community_id"]
