"""Names of servers: literal bytes and names, what is cut or malformed at any place, and real captures."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.flow import MAX_CONTENT_BYTES, Flow
from tapline.models.packet_tokens import TracegramFeatures, encode_packets
from tapline.models.server_name import server_name
from tapline.service.sources.capture import ReadOptions, read_capture
from tests.paths import DATA

CAPTURES = DATA / "captures"

NAME = "app.Example.org.au"
# Record, ClientHello, version, random, no session, a cipher suite, no compression; extensions: GREASE, server_name,
# supported_versions.
TLS = bytes.fromhex(
    "160301 0055 01000051 0303 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 00 00021301 0100 0026"
    "0a0a0000 00000017 0015 00 0012 6170702e4578616d706c652e6f72672e6175 002b0003020304"
)
# With epoch, sequence number, and a cookie; extensions: extended_master_secret, server_name, renegotiation_info.
DTLS = bytes.fromhex(
    "16fefd 0000 000000000001 005e 01000052 0001 000000 000052 fefd"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 00 02abcd 0002c02b 0100 0024"
    "00170000 00000017 0015 00 0012 6170702e4578616d706c652e6f72672e6175 ff01000100"
)
HTTP = b"GET /a?b=http://no.example HTTP/1.1\r\nAccept: */*\r\nHOST: \twww.Example.org:8080 \r\n\r\n"
DNS = bytes.fromhex("beef 0120 0001 0000 0000 0001 03 577757 07 6578616d706c65 03 6f7267 00 0001 0001 00")
# Where a name ends, with what must be whole behind it.
NAMED = {
    "tls": ("tcp", TLS, NAME, TLS.index(b".au") + 3),
    "dtls": ("udp", DTLS, NAME, DTLS.index(b".au") + 3),
    "http": ("tcp", HTTP, "www.Example.org", HTTP.index(b"8080 \r\n") + 7),
    "dns": ("udp", DNS, "www.example.org", len(DNS) - 1),
    "dns over tcp": ("tcp", len(DNS).to_bytes(2) + DNS, "www.example.org", len(DNS) + 1),
}


def flow(proto="tcp", orig=b"", resp=b"", **fields):
    return Flow("x", 0, 0, "10.0.0.1", 1, "10.0.0.2", 2, proto, orig_bytes=orig, resp_bytes=resp, **fields)


def of(proto, content, **fields):
    return server_name(flow(proto, content, **fields))


def vector(width, content):
    return len(content).to_bytes(width) + content


def extension(kind, content):
    return kind.to_bytes(2) + vector(2, content)


def server_name_extension(*names, kind=b"\0"):
    return extension(0, vector(2, b"".join(kind + vector(2, name) for name in names)))


def client_hello(*extensions, session=b"", suites=b"\x13\x01", behind=b""):
    body = b"\x03\x03" + bytes(32) + vector(1, session) + vector(2, suites) + b"\x01\0"
    body += (vector(2, b"".join(extensions)) if extensions else b"") + behind
    return b"\x16\x03\x01" + vector(2, b"\x01" + vector(3, body))


def query(name=b"\x01a\x07example\0", flags=0x0100, counts=(1, 0, 0, 0), end=b"\0\x01\0\x01"):
    return b"\x12\x34" + b"".join(number.to_bytes(2) for number in (flags, *counts)) + name + end


@pytest.mark.parametrize("case", NAMED)
def test_names_of_literal_bytes_cut_at_every_length(case):
    proto, content, name, end = NAMED[case]
    assert [of(proto, content[:size]) for size in range(len(content) + 1)] == [
        name if size >= end else "" for size in range(len(content) + 1)
    ]


@pytest.mark.parametrize("case", NAMED)
def test_a_capture_that_began_in_the_middle_has_its_request_on_the_other_side(case):
    proto, content, name, _ = NAMED[case]
    assert server_name(flow(proto, b"", content)) == name
    assert server_name(flow(proto, b"\x17\x03\x03\0\x01x", content)) == name
    assert server_name(flow("udp" if proto == "tcp" else "tcp", b"", content)) == ""
    assert server_name(flow("icmp", content, content)) == ""


def test_the_word_of_the_source_comes_first():
    assert of("tcp", TLS, server_name="quic.example") == "quic.example"


def test_a_client_hello_longer_than_what_is_kept():
    hello = client_hello(extension(0x0A0A, b""), server_name_extension(b"big.example"), extension(51, bytes(1216)))
    assert len(hello) > 1200
    assert of("tcp", hello[:MAX_CONTENT_BYTES]) == "big.example"
    late = client_hello(extension(51, bytes(1216)), server_name_extension(b"late.example"))
    assert of("tcp", late[:MAX_CONTENT_BYTES]) == ""
    record = client_hello(server_name_extension(b"split.example"))
    cut = record[:3] + (60).to_bytes(2) + record[5:65] + b"\x16\x03\x01" + vector(2, record[65:])
    assert of("tcp", cut) == "", "what is not in the first record is not looked for"


@pytest.mark.parametrize(
    "hello",
    [
        client_hello(),
        client_hello(extension(16, b"\0\x03\x02h2")),
        client_hello(server_name_extension(b"")),
        client_hello(server_name_extension(b"a.example", b"b.example")),
        client_hello(server_name_extension(b"a.example", kind=b"\x01")),
        client_hello(extension(0, b"\0\x20\0\0\x09a.example")),
        client_hello(b"\0\x10\0\xff", server_name_extension(b"a.example")),
        client_hello(server_name_extension(b"a.example"), behind=b"\0"),
        client_hello(server_name_extension(b"a.example"), session=bytes(33)),
        client_hello(server_name_extension(b"a.example"), suites=b"\x13"),
        b"\x15" + client_hello(server_name_extension(b"a.example"))[1:],
        b"\x16\x03\x05" + client_hello(server_name_extension(b"a.example"))[3:],
        b"\x16\x03\x01\xff\xff" + client_hello(server_name_extension(b"a.example"))[5:],
        client_hello(server_name_extension(b"a.example")).replace(b"\x01\0\0", b"\x02\0\0", 1),
    ],
    ids=itertools.count(),
)
def test_no_client_hello_with_one_name(hello):
    assert of("tcp", hello) == ""


def test_only_the_first_fragment_of_a_dtls_message_is_looked_at():
    assert of("udp", DTLS.replace(bytes.fromhex("000000000052fefd"), bytes.fromhex("000001000052fefd"))) == ""
    assert of("udp", DTLS.replace(bytes.fromhex("000000000052fefd"), bytes.fromhex("000000000030fefd"))) == ""
    assert of("udp", DTLS.replace(bytes.fromhex("000000000052fefd"), bytes.fromhex("000000000053fefd"))) == ""


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (b"GET / HTTP/1.1\nHost:a.example\n\n", "a.example"),
        (b"\r\nPOST * HTTP/1.0\r\nhost: 192.0.2.7:81\r\n\r\n", "192.0.2.7"),
        (b"GET / HTTP/1.1\r\nHost: [2001:DB8::7]:81\r\n\r\n", "2001:DB8::7"),
        (b"GET / HTTP/1.1\r\nHost: a.example:\r\n\r\n", "a.example"),
        (b"GET http://In.example:80/x HTTP/1.1\r\nHost: no.example\r\n\r\n", "In.example"),
        (b"GET HTTPS://[::1]?q HTTP/1.1\r\n", "::1"),
        (b"CONNECT in.example:443 HTTP/1.1\r\n", "in.example"),
        (b"CONNECT in.example:443 HTTP/1.1\r", ""),
        (b"GET / HTTP/1.1\r\nHost: a.example", ""),
        (b"GET / HTTP/1.1\r\n\r\nHost: a.example\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost : a.example\r\n", ""),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\nHost: a.example\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost:\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost: a.example, b.example\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost: a.example:8x\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost: [a.example]\r\n", ""),
        (b"GET http://user@a.example/ HTTP/1.1\r\nHost: b.example\r\n", ""),
        (b"GET a.example HTTP/1.1\r\nHost: b.example\r\n", ""),
        (b"GET  / HTTP/1.1\r\nHost: a.example\r\n", ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        (b"OPTIONS sip:a.example SIP/2.0\r\nHost: a.example\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nHost: a.example\r\n", ""),
    ],
    ids=itertools.count(),
)
def test_http(request_, name):
    assert of("tcp", request_) == name


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (query(), "a.example"),
        (query(flags=0x0330, counts=(1, 0, 0, 2)), "a.example"),
        (query(b"\x05_ipps\x04_tcp\x05local\0", flags=0, end=b"\0\x0c\x80\x01"), "_ipps._tcp.local"),
        (query(end=b"\0\x01\0\xff"), "a.example"),
        (query(b"\x3f" + 63 * b"B" + b"\0"), 63 * "b"),
        (query(3 * (b"\x3f" + 63 * b"b") + b"\x3d" + 61 * b"c" + b"\0"), ".".join([*3 * [63 * "b"], 61 * "c"])),
        (query(3 * (b"\x3f" + 63 * b"b") + b"\x3e" + 62 * b"c" + b"\0"), ""),
        (query(flags=0x8100), ""),
        (query(flags=0x2800), ""),
        (query(flags=0x0400), ""),
        (query(flags=0x0003), ""),
        (query(counts=(0, 0, 0, 0)), ""),
        (query(counts=(2, 0, 0, 0)), ""),
        (query(counts=(1, 1, 0, 0)), ""),
        (query(counts=(1, 0, 1, 0)), ""),
        (query(counts=(1, 0, 0, 3)), ""),
        (query(b"\0"), ""),
        (query(b"\x01a\xc0\x0c"), ""),
        (query(b"\x40" + 64 * b"b" + b"\0"), ""),
        (query(b"\x03a.b\0"), ""),
        (query(b"\x03a b\0"), ""),
        (query(b"\x02\xc3\xa4\0"), ""),
        (query(end=b"\0\0\0\x01"), ""),
        (query(end=b"\0\x01\0\x02"), ""),
    ],
    ids=itertools.count(),
)
def test_dns(message, name):
    assert of("udp", message) == name
    assert of("tcp", vector(2, message)) == name


def test_what_is_behind_the_length_of_a_dns_message_is_not_of_it():
    assert of("tcp", (len(query()) - 1).to_bytes(2) + query()) == ""


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (b"\x20FHEPFCELEHFCEPFFFACACACACACACABN\0", "workgroup"),
        (b"\x20fhepfcelehfcepfffacacacacacacabn\x05scope\0", "workgroup.scope"),
        (b"\x20CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\0", ""),
        (b"\x03www\0", ""),
    ],
    ids=itertools.count(),
)
def test_netbios_names_are_decoded(label, name):
    message = query(label, flags=0x0110, end=b"\0\x20\0\x01")
    found = Flow("x", 0, 0, "10.0.0.1", 137, "10.0.0.255", 137, "udp", orig_bytes=message)
    assert server_name(found) == name


@pytest.mark.parametrize(
    "name",
    [b"\x1b]0;owned\x07", b"a\0.example", b"a.example\n", "\u202e.example".encode(), b"=1+1", b"a..example", b".a",
     b"a.example.evil/../", b" a", b"a:1", 256 * b"a", b"b." * 127 + b"cc", b"\xff", b"1.2.3.4:80", b"%41"],
    ids=itertools.count(),
)  # fmt: skip
def test_what_no_host_name_and_no_address_may_have_makes_it_none(name):
    assert of("tcp", client_hello(server_name_extension(name))) == ""
    assert of("tcp", b"GET / HTTP/1.1\r\nHost: " + name.replace(b"\n", b"\t") + b"\x01\r\n") == ""


@pytest.mark.parametrize("name", ["a", "a.example.", "192.0.2.1", "2001:db8::1", "xn--bcher-kva.example", "r1---s_n.x"])
def test_host_names_and_addresses(name):
    assert of("tcp", client_hello(server_name_extension(name.encode()))) == name


MUTATED = st.builds(
    lambda content, place, cut, put: content[:place] + put + content[place + cut :],
    st.sampled_from([content for _, content, _, _ in NAMED.values()]),
    st.integers(0, 120),
    st.integers(0, 9),
    st.binary(max_size=9),
)


@given(
    st.sampled_from(["tcp", "udp"]),
    st.binary(max_size=256) | MUTATED,
    st.binary(max_size=256) | MUTATED,
    st.sampled_from([1, 137]),
)
def test_no_bytes_raise_and_no_name_has_other_characters(proto, orig, resp, port):
    name = server_name(Flow("x", 0, 0, "10.0.0.1", port, "10.0.0.2", 2, proto, orig_bytes=orig, resp_bytes=resp))
    assert len(name) <= 255
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._:")


def test_names_of_a_phone():
    names = {(found.orig_p, found.resp_p): server_name(found) for found in read_capture(CAPTURES / "android.pcap")}
    assert {ports: name for ports, name in names.items() if ports[1] not in (53, 443) and name} == {
        (5353, 5353): "_spotify-connect._tcp.local",
        (58338, 80): "captive.apple.com",
        (36834, 80): "check.googlezip.net",
        (36848, 80): "check.googlezip.net",
    }
    assert names[35825, 53] == "time.android.com"
    assert names[7660, 53] == "datasaver.googleapis.com"
    assert names[52514, 443] == "semanticlocation-pa.googleapis.com"
    assert names[43634, 443] == "proxy.googlezip.net"
    assert names[36888, 443] == names[36890, 443] == "connectivitycheck.gstatic.com"
    assert sum(bool(name) for ports, name in names.items() if ports[1] == 443) == 18, "as many as Zeek has in ssl.log"


def test_no_encoding_reads_it():
    flows = list(read_capture(CAPTURES / "android.pcap", ReadOptions(heads="full")))
    named = [msgspec.structs.replace(found, server_name=f"host{n}.example") for n, found in enumerate(flows)]
    for features in (Mm4flowFeatures(), Mm4flowFeatures(mask_addresses=True)):
        without, with_ = encode(flows, features), encode(named, features)
        for field in ("ps_tokens", "ps_offsets", "bytes_tokens", "bytes_types", "bytes_offsets"):
            np.testing.assert_array_equal(getattr(without, field), getattr(with_, field))
    for features in (TracegramFeatures(), TracegramFeatures(mask_addresses=True)):
        without, with_ = encode_packets(flows, features), encode_packets(named, features)
        np.testing.assert_array_equal(without.tokens, with_.tokens)
