"""MM4flow's tokens: literal answers, the published truncation, and packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.models.encode import Mm4flowFeatures, encode, pad
from tapline.models.flow import Flow, PacketHead
from tapline.models.packet_headers import ETHERNET


def flow(lengths=(), forward=b"", backward=b""):
    return Flow("x", 0, 0, "10.0.0.1", 1, "10.0.0.2", 2, "tcp", 0, 0, list(lengths), forward, backward)


def test_literal_tokens():
    batch = encode([flow([1, -1, 1500, -1500, 1501, -65535], b"\x00\xff", b"\x01"), flow([2], b"", b"")])
    assert batch.ps_tokens.tolist() == [2, 7, 8, 3005, 3006, 1, 1, 3, 2, 9, 3]
    assert batch.ps_offsets.tolist() == [0, 8, 11]
    assert batch.bytes_tokens.tolist() == [2, 7, 262, 3, 8, 3, 2, 3, 3]
    assert batch.bytes_types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1]
    assert batch.bytes_offsets.tolist() == [0, 6, 9]
    assert batch.lengths_out_of_vocabulary == 2


@pytest.mark.parametrize(
    ("forward", "backward", "kept"),
    [
        (256, 256, (254, 255)),
        (256, 254, (255, 254)),
        (255, 256, (254, 255)),
        (256, 100, (256, 100)),
        (0, 256, (0, 256)),
    ],
)
def test_content_is_cut_as_published(forward, backward, kept):
    tokens = encode([flow([1], bytes(forward), bytes(backward))]).bytes_tokens
    first, last = np.flatnonzero(tokens == 3)
    assert (first - 1, last - first - 1) == kept
    assert len(tokens) <= 512


MAC = b"\xb0\xc5\x54\xaa\xbb\xcc"


@pytest.mark.parametrize("text", [MAC, b"B0:C5:54:AA:BB:CC", b"\x0a\x00\x00\x01", b"10.0.0.2", b"AAbbCC"])
def test_own_addresses_in_content(text):
    named = flow([3], b"<" + text + b">", b"say " + text)
    named.link_type, named.heads = ETHERNET, [PacketHead(0, bytes(6) + MAC + b"\x08\x00")]
    masked = encode([named], Mm4flowFeatures(content_bytes=64, mask_addresses=True))
    zero, close = 7, 7 + ord(">")
    size = len(text)
    assert masked.bytes_tokens.tolist()[2:] == [zero] * size + [close, 3, *(7 + b for b in b"say "), *[zero] * size, 3]
    as_it_is = encode([named], Mm4flowFeatures(content_bytes=64))
    assert as_it_is.bytes_tokens[2] == 7 + text[0]
    assert len(as_it_is.bytes_tokens) == len(masked.bytes_tokens)


def test_other_addresses_in_content_stay():
    other = flow([3], b"10.0.0.11 or 110.0.0.1", MAC)
    plain, masked = (encode([other], Mm4flowFeatures(content_bytes=64, mask_addresses=mask)) for mask in (False, True))
    assert plain.bytes_tokens.tolist() == masked.bytes_tokens.tolist()


def test_dhcp_in_content():
    message = bytearray(b"\x01\x01\x06\x00" + b"\x77" * 236)
    message[236:240] = b"\x63\x82\x53\x63"
    message += b"\x35\x01\x01\x32\x04\x77\x77\x77\x77\x37\x02\x01\x03"
    asked = flow([253], bytes(message))
    asked.proto, asked.orig_p, asked.resp_p = "udp", 68, 67
    tokens = encode([asked], Mm4flowFeatures(mask_addresses=True)).bytes_tokens[1 : 1 + len(message)] - 7
    expected = bytes(message[:12]) + bytes(8) + bytes(message[20:28]) + bytes(16) + bytes(message[44:245])
    assert bytes(tokens.tolist()) == expected + bytes(4) + bytes(message[249:])


def test_no_flows():
    batch = encode([])
    assert len(batch) == 0
    assert batch.ps_tokens.size == 0


def test_features_bound_what_is_read():
    batch = encode([flow([1] * 254, bytes(256), bytes(256))], Mm4flowFeatures(payload_lengths=10, content_bytes=20))
    assert (batch.ps_counts.tolist(), batch.bytes_counts.tolist()) == ([12], [43])
    with pytest.raises(ValueError, match="content_bytes: expected 0 to 256, got 257"):
        Mm4flowFeatures(content_bytes=257)


LENGTHS = st.lists(st.integers(-65535, 65535).filter(bool), max_size=254)
CONTENT = st.binary(max_size=256)


@given(st.lists(st.tuples(LENGTHS, CONTENT, CONTENT), min_size=1, max_size=6))
def test_a_flow_encodes_the_same_in_any_batch(parts):
    flows = [flow(*part) for part in parts]
    batch = encode(flows)
    for index, alone in enumerate(encode([one]) for one in flows):
        ps = slice(*batch.ps_offsets[index : index + 2])
        content = slice(*batch.bytes_offsets[index : index + 2])
        np.testing.assert_array_equal(batch.ps_tokens[ps], alone.ps_tokens)
        np.testing.assert_array_equal(batch.bytes_tokens[content], alone.bytes_tokens)
        np.testing.assert_array_equal(batch.bytes_types[content], alone.bytes_types)


def test_padding():
    batch = encode([flow([1, 2]), flow([3])])
    assert pad(batch.ps_tokens, batch.ps_offsets, np.array([1, 0])).tolist() == [[2, 11, 3, 0], [2, 7, 9, 3]]
    assert pad(batch.ps_tokens, batch.ps_offsets, np.array([1]), 6).tolist() == [[2, 11, 3, 0, 0, 0]]
