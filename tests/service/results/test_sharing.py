"""What is given away: no payload, and no real address anywhere, the same mapping in all records of a run."""

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.service.community_id import community_id
from tapline.service.results.anonymise import AnonymiseKeyError, Anonymiser, read_key
from tapline.service.results.port_tries import PortTries, TriedPorts
from tapline.service.results.records import Summary, classified
from tapline.service.results.sharing import Sharing
from tapline.service.sources.capture import read_capture
from tests.paths import DATA
from tests.service.results.results import make_flow, make_trace, make_verdict

KEY = bytes(range(21, 53))
"""That of the samples that come with Crypto-PAn, in part."""


def common_bits(a, b):
    a, b = ipaddress.ip_address(a), ipaddress.ip_address(b)
    return a.max_prefixlen - (int(a) ^ int(b)).bit_length()


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_prefixes_are_kept_of_ipv4(a, b):
    other = Anonymiser(KEY)
    assert common_bits(other.address(str(a)), other.address(str(b))) == common_bits(a, b)


@given(st.ip_addresses(v=6), st.ip_addresses(v=6))
def test_prefixes_are_kept_of_ipv6(a, b):
    other = Anonymiser(KEY)
    assert common_bits(other.address(str(a)), other.address(str(b))) == common_bits(a, b)


def test_the_key_alone_makes_the_mapping():
    assert Anonymiser(KEY).address("10.0.0.5") == Anonymiser(KEY).address("10.0.0.5")
    assert Anonymiser(KEY).uid("C1") == Anonymiser(KEY).uid("C1")
    assert Anonymiser().address("10.0.0.5") != Anonymiser().address("10.0.0.5")


def test_subjects_by_mac_and_of_pairs():
    other = Anonymiser(KEY)
    pair = other.subject("10.0.0.5 - fe80::1").split(" - ")
    assert pair == [other.address("10.0.0.5"), other.address("fe80::1")]
    mac = other.subject("20:F8:5e:ca:91:52")
    assert mac == other.subject("20:f8:5e:ca:91:52") != other.subject("20:f8:5e:ca:91:53")
    assert int(mac[:2], 16) & 3 == 2  # locally administered, of one card: no vendor can be read


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("www.example.com", "www.example.com"),
        ("4.3.2.1.in-addr.arpa", ""),
        ("b.a.9.8.ip6.arpa", ""),
        ("ec2-10-0-0-5.compute.example", ""),
        ("host-10.0.0.5.example", ""),
        ("4c6af69ff627.local", ""),
        ("4c-6a-f6-9f-f6-27.local", ""),
        ("fe80--4e6a-f6ff-fe9f-f627-0-0.example", ""),
        ("", ""),
    ],
)
def test_names_that_carry_an_address_are_left_out(name, left):
    assert Anonymiser(KEY).server_name(name) == left


def test_a_name_that_is_an_address_is_mapped_as_one():
    other = Anonymiser(KEY)
    assert other.server_name("10.0.0.5") == other.address("10.0.0.5")


def test_a_flow_without_content_keeps_the_name_that_its_content_has():
    flows = list(read_capture(DATA / "captures" / "android.pcap"))
    kept = [classified(Sharing(content=False).flow(flow), None, "") for flow in flows]
    assert [flow.server_name for flow in kept] == [classified(flow, None, "").server_name for flow in flows]
    assert any(flow.server_name == "captive.apple.com" for flow in kept)
    assert {(flow.orig_bytes, flow.resp_bytes, len(flow.heads)) for flow in kept} == {("", "", 0)}
    assert any(flow.payload_lengths for flow in kept)


@pytest.mark.parametrize(
    "path",
    ["android.pcap", "ndpi/dlt_ppp.pcap", "zeek-traces/icmp/icmp6-ping.pcap", "zeek-traces/tunnels/6in6in6.pcap"],
)
def test_no_real_address_is_left_in_the_records_of_real_captures(path):
    sharing = Sharing(anonymiser=Anonymiser(KEY))
    flows = list(read_capture(DATA / "captures" / path))
    real = {address for flow in flows for address in (flow.orig_h, flow.resp_h)}
    records = [classified(sharing.flow(flow), make_verdict(), "") for flow in flows]
    shown = {address for record in records for address in (record.orig_h, record.resp_h)}
    assert len(shown) == len(real)
    text = msgspec.json.encode(records).decode()
    assert [address for address in real if f'"{address}"' in text] == []
    for flow, record in zip(flows, records, strict=True):
        assert record.community_id != community_id(flow)
        assert record.community_id == community_id(sharing.flow(flow))
        assert record.uid != flow.uid


def test_flows_traces_and_summary_have_one_mapping():
    sharing = Sharing(anonymiser=Anonymiser(KEY))
    flow, trace = sharing.flow(make_flow()), sharing.trace(make_trace())
    tries = TriedPorts([PortTries("10.0.0.5", 3, 1, 3)], 4)
    summary = sharing.summary(Summary("m", "1", port_tries=tries))
    (top,) = trace.top_flows
    assert flow.orig_h == trace.subject == top.orig_h == summary.port_tries.hosts[0].orig_h != "10.0.0.5"
    assert (flow.uid, flow.resp_h, community_id(flow)) == (top.uid, top.resp_h, community_id(top))
    assert top.community_id == community_id(flow)
    assert summary.port_tries.flows_of_others == 4


def test_keys_are_read_whole_or_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY.hex() + "\n")
    assert read_key(path) == KEY
    for bad in ("", "ab", KEY.hex()[:-1], KEY.hex() + "00", "zz" * 32):
        path.write_text(bad)
        with pytest.raises(AnonymiseKeyError, match="64 hex digits"):
            read_key(path)
    with pytest.raises(AnonymiseKeyError, match="cannot read the key"):
        read_key(tmp_path / "none")
    with pytest.raises(AnonymiseKeyError, match="32 bytes, got 5"):
        Anonymiser(b"short")
