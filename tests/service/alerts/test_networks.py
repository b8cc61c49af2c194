"""Sets of networks and of names: what is in them, against the plain way to say so."""

import fnmatch
import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from tapline.service.alerts.networks import NameSet, NetworkSet

ADDRESSES = st.ip_addresses()
NETWORKS = st.lists(st.tuples(ADDRESSES, st.integers(0, 128)), max_size=6)


@given(NETWORKS, ADDRESSES)
def test_a_network_has_the_addresses_that_it_has(networks, address):
    texts = [f"{start}/{min(length, start.max_prefixlen)}" for start, length in networks]
    plain = [ipaddress.ip_network(text, strict=False) for text in texts]
    assert (str(address) in NetworkSet(texts)) == any(address in network for network in plain)
    assert all(str(network.network_address) in NetworkSet(texts) for network in plain)
    assert all(str(network.broadcast_address) in NetworkSet(texts) for network in plain)


def test_what_is_no_address_is_in_no_network():
    everything = NetworkSet(["0.0.0.0/0", "::/0"])
    assert [text in everything for text in ("", "00:17:88:01:02:03", "a", "1.2.3", "::x")] == [False] * 5


@given(st.lists(st.text("ab.*?", min_size=1, max_size=5), max_size=4), st.text("ab.", max_size=6))
def test_names_are_those_of_globs(patterns, name):
    assert (name in NameSet(patterns)) == any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
