"""What of flows and traces is given away: without payload, with other addresses in the place of real ones."""

from __future__ import annotations

from msgspec.structs import replace

from tapline.models.flow import Flow
from tapline.models.server_name import server_name
from tapline.models.verdict import Verdict
from tapline.service.community_id import community_id
from tapline.service.results.anonymise import Anonymiser
from tapline.service.results.port_tries import TriedPorts
from tapline.service.results.records import Summary
from tapline.service.results.writers import Writer
from tapline.service.traces.trace_verdict import TopFlow, TraceVerdict


def without_content(flow: Flow) -> Flow:
    """The flow without content bytes and packet heads, with the name of its server: what records show stays."""
    return replace(
        flow, orig_bytes=b"", resp_bytes=b"", heads=[], heads_kind="none", link_type=0, server_name=server_name(flow)
    )


class Sharing:
    """Makes of each record what may be given away.

    With an `anonymiser` addresses, uids and names that carry an address are others, the same in all records, Community
    IDs follow from the new addresses, and there is no content, which would hold the real ones.
    """

    def __init__(self, *, content: bool = True, anonymiser: Anonymiser | None = None) -> None:
        self._content = content and anonymiser is None
        self._anonymiser = anonymiser

    def flow(self, flow: Flow) -> Flow:
        """A flow."""
        if self._content:
            return flow
        flow = without_content(flow)
        if (other := self._anonymiser) is None:
            return flow
        return replace(
            flow,
            uid=other.uid(flow.uid),
            orig_h=other.address(flow.orig_h),
            resp_h=other.address(flow.resp_h),
            server_name=other.server_name(flow.server_name),
        )

    def trace(self, trace: TraceVerdict) -> TraceVerdict:
        """A trace."""
        if (other := self._anonymiser) is None:
            return trace
        return replace(
            trace, subject=other.subject(trace.subject), top_flows=[_top_flow(flow, other) for flow in trace.top_flows]
        )

    def summary(self, summary: Summary) -> Summary:
        """A summary."""
        if (other := self._anonymiser) is None:
            return summary
        hosts = [replace(host, orig_h=other.address(host.orig_h)) for host in summary.port_tries.hosts]
        return replace(summary, port_tries=TriedPorts(hosts, summary.port_tries.flows_of_others))


def _top_flow(flow: TopFlow, other: Anonymiser) -> TopFlow:
    moved = replace(
        flow,
        uid=other.uid(flow.uid),
        orig_h=other.address(flow.orig_h),
        resp_h=other.address(flow.resp_h),
        server_name=other.server_name(flow.server_name),
    )
    return replace(moved, community_id=community_id(moved))


class SharedWriter:
    """Passes on to another writer what `sharing` makes of each record."""

    def __init__(self, target: Writer, sharing: Sharing) -> None:
        self._target = target
        self._sharing = sharing

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow."""
        self._target.add(self._sharing.flow(flow), verdict, name)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace."""
        self._target.add_trace(self._sharing.trace(trace))

    def finish(self, summary: Summary) -> None:
        """Write the end."""
        self._target.finish(self._sharing.summary(summary))
