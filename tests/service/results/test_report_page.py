"""The report: one page that asks nobody for anything, shows foreign text and runs none of it, whatever the input."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from tapline.service.results.page_account import CONFIDENCE_BINS, MAX_BINS, MAX_HOSTS, PageAccount, TimeBins
from tapline.service.results.port_tries import PortTries, TriedPorts
from tapline.service.results.records import InputSummary, LabelSummary, Summary, TraceSummary
from tapline.service.results.report_page import FLOW_ROWS, TRACE_ROWS, ReportBuilder
from tests.service.results.results import START_US, make_flow, make_trace, make_verdict

EVIL = '"><script>alert(1)</script>\x1b]0;x\x07'


class Page(HTMLParser):
    """Elements, attributes and text of a page; every element that is opened is closed."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)


def summary(**fields):
    return Summary("flow-protocols", "2", inputs=[InputSummary("a.pcap", 3, 9, {"not IP": 2})], **fields)


def built(shown=(), found=(), **fields):
    builder = ReportBuilder()
    for flow, verdict in shown:
        builder.add(flow, verdict, "a.pcap")
    for trace in found:
        builder.add_trace(trace)
    return builder.finish(summary(**fields))


def test_everything_is_in_it():
    flows = [(make_flow(0), make_verdict()), (make_flow(1), make_verdict("SSH", 0.3, unknown=True))]
    text = built(
        flows,
        [make_trace(suspicion=0.97, suspicious=True), make_trace("10.0.0.7", suspicion=0.01, suspicious=False)],
        flows=5, classified=2, unknown=1, without_payload=3,
        labels=[LabelSummary("TLS", 1, 300, 0.99), LabelSummary("unknown", 1, 300, 0.3)],
        port_tries=TriedPorts([PortTries("10.0.0.5", 1994, 1, 1994)], 0),
        traces=[TraceSummary("intrusion", "1", "originator", 600, suspicious=1, cut=4)],
    )  # fmt: skip
    page = Page(text)
    for said in (
        "10.0.0.5 tried 1,994 ports of 1 host, none answered with payload",
        "unknown (nearest SSH)",
        "suspicious 97%",
        "not suspicious by flow-protocols",
        "2023-11-14 22:13:20",
        "a.pcap: without a flow, of 9 packets: 2 not IP",
        "10.0.0.9:443",
        "a.example",
        "4 flows cut",
    ):
        assert said in page.text
    assert page.tags.count("svg") >= 4


def test_it_asks_nobody_and_runs_nothing():
    text = built([(make_flow(), make_verdict())], [make_trace()], labels=[LabelSummary("TLS", 1)])
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "form", "object", "a"} & set(page.tags)
    names = {name for _, name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "href", "style", "action")}
    assert not re.search(r"https?://|//\w|url\(|@import", text)
    (policy,) = [value for tag, name, value in page.attributes if name == "content" and "default-src" in value]
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_foreign_text_is_shown_and_steers_nothing():
    verdict = make_verdict(EVIL, port_label=EVIL, unexpected_port=True)
    flow = make_flow(server_name=EVIL)
    builder = ReportBuilder()
    builder.add(flow, verdict, EVIL)
    builder.add_trace(make_trace(EVIL, EVIL))
    inputs = [InputSummary(EVIL, 1, 2, {EVIL: 1}, EVIL, EVIL), InputSummary("b")]
    text = builder.finish(Summary(EVIL, EVIL, labels=[LabelSummary(EVIL, 1)], inputs=inputs))
    assert "script" not in Page(text).tags
    assert not {"\x1b", "\x07"} & set(text)
    assert text.count("&lt;script&gt;") >= 10


def test_no_payload_is_in_it():
    secret = b"SECRET-PAYLOAD"
    text = built([(make_flow(orig_bytes=secret, resp_bytes=secret), make_verdict())])
    assert secret.decode() not in text
    assert secret.hex() not in text


def test_an_empty_result_is_a_page_too():
    page = Page(ReportBuilder().finish(Summary("m", "1")))
    assert "What was read" in page.text
    assert "Flows over time" not in page.text


def test_many_flows_and_traces_are_bounded_and_the_rest_is_told():
    flows = [(make_flow(number), make_verdict()) for number in range(FLOW_ROWS + 1234)]
    traces = [make_trace(f"10.0.0.{number % 250}") for number in range(TRACE_ROWS)]
    last = make_trace("192.0.2.77", suspicion=0.99, suspicious=True)
    text = built(flows, [*traces, last])
    page = Page(text)
    assert "1,234 more flows are left out of this page" in page.text
    assert "1 more traces are left out" in page.text
    assert page.text.index("192.0.2.77") < page.text.index("10.0.0.0:")  # suspicious ones come first
    assert len(text) < 1_000_000


@pytest.mark.parametrize("spread_seconds", [1, 119, 120, 86_400, 10**9])
def test_bins_of_time_are_few_and_count_all(spread_seconds):
    bins = TimeBins()
    for number in range(1000):
        bins.add(START_US + (number * 7919 % 1000) * spread_seconds * 1000, f"L{number % 3}")
    assert max(bins.bins) - min(bins.bins) < MAX_BINS
    assert sum(counts.total() for counts in bins.bins.values()) == 1000


def test_the_account_of_hosts_is_bounded():
    account = PageAccount()
    for number in range(MAX_HOSTS + 100):
        account.add(make_flow(orig_h=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"), make_verdict("TLS", 1.0))
    assert account.host_count == MAX_HOSTS
    assert account.flows_of_other_hosts == 100
    assert account.hosts(1)[0].host == "10.0.0.9"
    assert account.confidences[CONFIDENCE_BINS - 1] == MAX_HOSTS + 100
