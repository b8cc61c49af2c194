"""Community ID v1 of a flow, the join key that other tools use (github.com/corelight/community-id-spec)."""

from __future__ import annotations

from typing import Protocol

import communityid

from tapline.models.flow import ip_protocol_number

_PORT_PROTOCOLS = {1, 6, 17, 58, 132}
_HASHER = communityid.CommunityID()


class Endpoints(Protocol):
    """What of a flow its Community ID follows from."""

    @property
    def proto(self) -> str:
        """As of `models.flow.Flow`."""
        ...

    @property
    def orig_h(self) -> str:
        """Address of the originator."""
        ...

    @property
    def orig_p(self) -> int:
        """Its port."""
        ...

    @property
    def resp_h(self) -> str:
        """Address of the responder."""
        ...

    @property
    def resp_p(self) -> int:
        """Its port."""
        ...


def community_id(flow: Endpoints) -> str:
    """The flow's Community ID v1 with seed 0."""
    number = ip_protocol_number(flow.proto, flow.orig_h)
    ports = (flow.orig_p, flow.resp_p) if number in _PORT_PROTOCOLS else (None, None)
    return str(_HASHER.calc(communityid.FlowTuple(number, flow.orig_h, flow.resp_h, *ports)))
