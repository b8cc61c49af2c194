"""Community ID v1 of a flow, the join key that other tools use (github.com/corelight/community-id-spec)."""

from __future__ import annotations

from typing import Protocol

import communityid

from tapline.models.flow import ip_protocol_number

_PORT_PROTOCOLS = {1, 6, 17, 58, 132}
_HASHER = communityid.CommunityID()


class Endpoints(Protocol):
    """What of a flow its Community ID follows from."""

    proto: str
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int


def community_id(flow: Endpoints) -> str:
    """The flow's Community ID v1 with seed 0."""
    number = ip_protocol_number(flow.proto, flow.orig_h)
    ports = (flow.orig_p, flow.resp_p) if number in _PORT_PROTOCOLS else (None, None)
    return str(_HASHER.calc(communityid.FlowTuple(number, flow.orig_h, flow.resp_h, *ports)))
