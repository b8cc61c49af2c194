"""Tables of flows on narrow terminals: an address and a port are not cut in the middle where there is room for them."""

import io

import pytest

from tapline.models.verdict import Verdict
from tapline.service.command.console import make_console
from tapline.service.command.flow_rows import FlowTable
from tapline.service.command.terminal import endpoint_text
from tapline.service.sources.capture import read_capture
from tests.paths import DATA


@pytest.fixture(scope="module")
def flows():
    found = read_capture(DATA / "captures" / "android.pcap")
    return [flow for flow in found if flow.payload_lengths and ":" not in flow.orig_h]


def drawn(flows, width):
    table, file = FlowTable(0), io.StringIO()
    for flow in flows:
        table.add(flow, Verdict("Dropbox", "Dropbox", 0.99, False, [], "flow-protocols", "1"))
    table.draw(make_console(file, width=width))
    return file.getvalue()


def test_every_endpoint_stands_whole_where_there_is_room(flows):
    shown = drawn(flows, 130).split()
    for flow in flows:
        assert endpoint_text(flow.orig_h, flow.orig_p, flow.proto) in shown
        assert endpoint_text(flow.resp_h, flow.resp_p, flow.proto) in shown


@pytest.mark.parametrize("width", [80, 90, 100])
def test_on_a_narrow_terminal_addresses_and_ports_are_whole(flows, width):
    text = drawn(flows, width)
    assert max(map(len, text.splitlines())) <= width
    shown = set(text.split())
    for flow in flows:
        ends = ((flow.orig_h, flow.orig_p), (flow.resp_h, flow.resp_p))
        for address, port in ends if max(len(address) for address, _ in ends) < 14 else ():
            assert {address, f":{port}"} <= shown or f"{address}:{port}" in shown
