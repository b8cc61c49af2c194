"""The text of an output: what it means, what is wrong with it, and that nothing secret is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.service.sinks.output_url import (
    SCHEMES,
    EveOutput,
    KafkaOutput,
    OutputError,
    SyslogOutput,
    WebhookOutput,
    parse_output,
    parse_outputs,
    shown_output,
)


def test_what_texts_mean():
    eve = parse_output("eve:/var/log/tapline/eve.json?rotate_mb=50&rotate_hours=24&keep=3&compress=zstd&records=alerts")
    assert isinstance(eve, EveOutput)
    assert (eve.path, eve.rotate_mb, eve.rotate_hours, eve.keep) == ("/var/log/tapline/eve.json", 50, 24, 3)
    assert (eve.compress, eve.records, eve.spool_mb) == ("zstd", ("alerts",), 0)
    syslog = parse_output("syslog+tls://siem.example.org?ca=/etc/ca.pem&cert=/etc/c.pem&key=/etc/k.pem")
    assert isinstance(syslog, SyslogOutput)
    assert (syslog.transport, syslog.host, syslog.port, syslog.ca) == ("tls", "siem.example.org", 6514, "/etc/ca.pem")
    assert syslog.records == ("flows", "traces", "alerts")
    assert parse_output("syslog+udp://[::1]:5514").host == "::1"
    assert parse_output("syslog+udp://h").spool_mb == 0
    hook = parse_output("https://siem.example.org/hooks/T0/B0?secret_file=/etc/s&records=alerts,traces&name=soc")
    assert isinstance(hook, WebhookOutput)
    assert (hook.host, hook.port, hook.path, hook.name) == ("siem.example.org", 443, "/hooks/T0/B0", "soc")
    assert hook.records == ("traces", "alerts")
    kafka = parse_output("kafka+tls://a:9092,b:9092/tapline.alerts?ca=/etc/ca.pem&spool_mb=0")
    assert isinstance(kafka, KafkaOutput)
    assert (kafka.servers, kafka.topic, kafka.tls, kafka.spool_mb) == ("a:9092,b:9092", "tapline.alerts", True, 0)


@pytest.mark.parametrize("path", ["/var/log/eve.json", "///var/log/eve.json"])
def test_a_file_may_have_slashes_before_it(path):
    assert parse_output(f"eve:{path}").path == "/var/log/eve.json"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("eve", "begins with"),
        ("evee:/a", "did you mean eve?"),
        ("eve:", "path of a file"),
        ("eve:/var/log/", "path of a file"),
        ("eve://host/eve.json", "path of a file"),
        ("eve:/a?rotate_bm=3", "did you mean rotate_mb?"),
        ("eve:/a?path=/b", "unknown parameter path"),
        ("eve:/a?ca=/b", "unknown parameter ca"),
        ("eve:/a?rotate_mb=x", "rotate_mb=x: expected"),
        ("eve:/a?rotate_mb=-1", "rotate_mb=-1: expected"),
        ("eve:/a?keep=0", "keep=0: expected"),
        ("eve:/a?compress=lzma", "compress=lzma: "),
        ("eve:/a?keep=1&keep=2", "given twice"),
        ("eve:/a?keep=", "empty"),
        ("eve:/a?keep", "NAME=VALUE"),
        ("eve:/a?records=flow", "records=flow: expected some of flows, traces, alerts"),
        ("eve:/a?records=,", "expected some of"),
        ("eve:/a?name=a%20b", "name: expected"),
        ("syslog://h", "begins with"),
        ("syslog+tls:h", "expected syslog+tls://HOST"),
        ("syslog+tls://h:0x", "port from 1 to 65535"),
        ("syslog+tcp://h:70000", "port from 1 to 65535"),
        ("syslog+tcp://h:0", "port from 1 to 65535"),
        ("kafka://a:9092,b:0/t", "port from 1 to 65535"),
        ("https://h/a b", "no blanks"),
        ("https://h/a\r\nX: y", "no blanks"),
        ("https://h/ä", "only ASCII"),
        ("syslog+tcp://h/path", "no path"),
        ("syslog+tcp://h?ca=/a", "ca is for syslog+tls"),
        ("syslog+tls://h?facility=kern", "facility=kern: expected"),
        ("syslog+tls://h?key=/k", "key without cert"),
        ("http://siem.example.org/a", "expected https"),
        ("https://user:word@siem.example.org/a", "secrets are read from files"),
        ("https://siem.example.org/a#b", "no #"),
        ("https:///a", "expected https://HOST"),
        ("https://h/a?timeout_seconds=0", "timeout_seconds=0: expected"),
        ("kafka://h:9092", "TOPIC"),
        ("kafka://h:9092/a/b", "topic=a/b: expected"),
    ],
)
def test_what_is_wrong_is_said(text, problem):
    with pytest.raises(OutputError) as error:
        parse_output(text)
    assert problem in str(error.value)


def test_two_outputs_need_two_names_and_two_files():
    hooks = ["https://h/one", "https://h/two"]
    with pytest.raises(OutputError, match=r"https://h:443 is there twice: .*name=NAME"):
        parse_outputs(hooks)
    assert [output.name for output in parse_outputs([hooks[0], f"{hooks[1]}?name=two"])] == ["https://h:443", "two"]
    with pytest.raises(OutputError, match="one file is written by two outputs"):
        parse_outputs(["eve:/a", "eve:/a?name=b"])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("place", ["//me:hunter2@h/a", "//h/a?kee=hunter2", "//h/a?key=hunter2&key=b", "//h/a#hunter2"])
def test_nothing_secret_is_shown(scheme, place):
    text = f"{scheme}:{place}"
    with pytest.raises(OutputError) as error:
        parse_outputs([text])
    assert "hunter2" not in f"{error.value} {shown_output(text) if scheme != 'eve' else ''}"


def test_the_path_of_a_webhook_is_not_shown():
    assert shown_output("https://hooks.example.org/T0/hunter2?name=x") == "https://hooks.example.org:443"


def test_a_text_that_is_no_url_is_not_shown():
    assert shown_output("hunter2") == "..."
    with pytest.raises(OutputError) as error:
        parse_outputs(["hunter2"])
    assert "hunter2" not in str(error.value)


@given(st.sampled_from(SCHEMES), st.text(max_size=60))
def test_any_text_is_an_output_or_an_error(scheme, rest):
    text = f"{scheme}:{rest}"
    try:
        output = parse_output(text)
    except OutputError:
        assert shown_output(text).startswith((f"{scheme}:", "..."))
    else:
        assert shown_output(text) == output.shown
        assert output.shown.isprintable()
