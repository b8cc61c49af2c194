##! The package's contract: options, the flow record, the events on the bus, per-connection state and counters.
##! The other files of the package fill and send what is declared here.

module Tapline;

export {
	## Version of the flow record and of every event of the package. A reader refuses versions it does not know.
	const format_version = 1;

	## Names this sensor in every event. Empty: the host name on the bus, nothing in log files. In a cluster the
	## node's name is added, because each worker counts its own sequence.
	const sensor = "" &redef;

	## Content bytes kept per direction, 0 to 256. With 0 no content is looked at and none leaves Zeek.
	const content_bytes = 256 &redef;

	## Packet heads kept for trace models: "none", "header" (no transport payload) or "full" (as captured).
	const heads = "header" &redef;

	## Payload packets, up to 254, after which a living flow is published early; 0: never by this rule.
	option early_packets: count = 8;

	## Time from a flow's first payload packet after which it is published early; 0sec: never by this rule.
	option early_interval: interval = 5sec;

	## Content bytes, both directions together, after which a flow is published early; 0: never by this rule.
	option early_bytes: count = 512;

	## Publish flows without a single payload packet too (scans, bare handshakes). Otherwise they are counted.
	option publish_without_payload = F;

	## Flows with an endpoint in one of these networks are left out (and counted).
	option exclude_networks: set[subnet] = {};

	## Flows to or from one of these ports are left out (and counted).
	option exclude_ports: set[port] = {};

	## Site policy on what is observed: a body that breaks leaves the flow out. Runs once, at its first packet.
	global observe: hook(c: connection);

	## Signed payload lengths kept per flow.
	const max_payload_lengths = 254;

	## Tracegram tokens that packet heads may fill: 512 less the class token and the end token.
	const heads_token_budget = 510;

	## Tokens that a head costs before its bytes: packet start, link type and eight bytes of time.
	const head_token_cost = 10;

	## What is published of a flow. The README of the package explains every field.
	type Flow: record {
		version: count &log;
		sensor: string &log;
		seq: count &log;
		final: bool &log;
		uid: string &log;
		start_us: count &log;
		duration_us: count &log;
		orig_h: addr &log;
		orig_p: count &log;
		resp_h: addr &log;
		resp_p: count &log;
		proto: string &log;
		service: string &log;
		conn_state: string &log;
		orig_pkts: count &log;
		resp_pkts: count &log;
		orig_ip_bytes: count &log;
		resp_ip_bytes: count &log;
		up: count &log;
		down: count &log;
		payload_lengths: string &log;
		orig_bytes: string &log;
		resp_bytes: string &log;
		link_type: count &log;
		heads_kind: string &log;
		heads: string &log;
		## Of the server that the client asked for, where Zeek knows it. The event does not carry it.
		server_name: string &log &optional;
	};

	## One flow, early or final: the fields of :zeek:type:`Tapline::Flow` up to `heads`, flat, because the bus sends records by
	## position and cuts times to milliseconds.
	global flow: event(version: count, sensor: string, seq: count, final: bool, uid: string, start_us: count,
	    duration_us: count, orig_h: addr, orig_p: count, resp_h: addr, resp_p: count, proto: string,
	    service: string, conn_state: string, orig_pkts: count, resp_pkts: count, orig_ip_bytes: count,
	    resp_ip_bytes: count, up: count, down: count, payload_lengths: string, orig_bytes: string,
	    resp_bytes: string, link_type: count, heads_kind: string, heads: string);

	## Takes a flow somewhere: the bus, a log. Runs for each publication.
	global deliver: hook(c: connection, f: Flow);

	## What became of the flows so far. Every connection that Zeek removed is in exactly one of `finals`,
	## `unchanged`, `without_payload` and `filtered`.
	type Counters: record {
		## Publications so far, early and final: the last sequence number.
		seq: count &default=0;
		## Flows published early.
		early: count &default=0;
		## Flows published when Zeek removed them.
		finals: count &default=0;
		## Flows removed with nothing new since their early publication, so not published again.
		unchanged: count &default=0;
		## Flows removed without a payload packet, not published.
		without_payload: count &default=0;
		## Flows left out by network, port or site policy.
		filtered: count &default=0;
		## Flows with more payload packets than lengths are kept.
		cut: count &default=0;
		## Directions whose content stopped at a gap.
		gaps: count &default=0;
	};

	## The counters of this Zeek process.
	global counters = Counters();

	## State of one connection, bounded whatever its length. Directions are kept relative to the sender of its first
	## packet, since Zeek may decide later that this was the responder.
	type State: record {
		## Sender of the first packet.
		first_h: addr;
		## Both endpoints are one host, so that only the ports tell the direction; then that of the first packet.
		same_host: bool &default=F;
		first_p: count &default=0;
		## F: left out by a filter.
		observed: bool &default=T;
		## Payload packets from the first packet's sender, and back.
		ahead: count &default=0;
		back: count &default=0;
		## First payload lengths, positive from the first packet's sender.
		lengths: vector of int &default=vector();
		## First content bytes; these two follow Zeek's own idea of the originator.
		orig_bytes: string &default="";
		resp_bytes: string &default="";
		## Where their TCP streams go on, 0 before they start; and whether there will be no more bytes.
		orig_next: count &default=0;
		resp_next: count &default=0;
		orig_done: bool &default=F;
		resp_done: bool &default=F;
		## Packet heads as they are sent, and the tokens left for more.
		heads: string &default="";
		heads_left: count &default=0;
		last_packet_us: count &default=0;
		## An early publication is due or done; what it covered; the connection is gone.
		early_due: bool &default=F;
		early: bool &default=F;
		early_mark: count &default=0;
		closed: bool &default=F;
		## The name of the server that the client asked for.
		server_name: string &default="";
	};
}

redef record connection += {
	tapline: Tapline::State &optional;
};

# Declared here for the files that use them before the one that owns them is read.

# The flow is due for its early publication: raised once the current packet's content is in, or by the deadline.
global early_due: event(c: connection);
global extension_bytes: function(ip6: ip6_hdr): count;
global transport_bytes: function(c: connection, p: pkt_hdr): count;
global make_early_due: function(c: connection);
global sent_by_orig: function(c: connection): bool;

# The name in use; `sensor` is what the site asked for.
global sensor_name = sensor;

event zeek_init() &priority=10
	{
	if ( content_bytes > 256 )
		Reporter::fatal(fmt("Tapline::content_bytes must be 0 to 256, not %d", content_bytes));
	if ( heads != "none" && heads != "header" && heads != "full" )
		Reporter::fatal(fmt("Tapline::heads must be \"none\", \"header\" or \"full\", not \"%s\"", heads));
	sensor_name = sensor;
	}
