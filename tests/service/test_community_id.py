"""Community IDs are those of the specification's own library."""

import communityid
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tapline.service.community_id import community_id
from tests.service.sinks.records import FLOW

PORTS = st.one_of(st.sampled_from([0, 53, 443, 65535]), st.integers(0, 65535))
NUMBERS = {"tcp": 6, "udp": 17}


@given(
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([4, 6]).flatmap(lambda kind: st.tuples(*[st.ip_addresses(v=kind).map(str)] * 2)),
    st.booleans(),
    PORTS,
    PORTS,
)
def test_tcp_and_udp(proto, hosts, alone, orig_p, resp_p):
    orig_h, resp_h = (hosts[0], hosts[0]) if alone else hosts
    flow = msgspec.structs.replace(FLOW, proto=proto, orig_h=orig_h, orig_p=orig_p, resp_h=resp_h, resp_p=resp_p)
    found = communityid.FlowTuple(NUMBERS[proto], orig_h, resp_h, orig_p, resp_p)
    assert community_id(flow) == communityid.CommunityID().calc(found)
