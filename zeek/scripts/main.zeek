##! The package's contract: options, the flow record, what an extraction gives (in script or native), counters.
##! The other files of the package fill and send what is declared here.

module Tapline;

export {
	## Version of the flow record and of every event but :zeek:see:`Tapline::flows`. A reader refuses versions it does not
	## know.
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

	## What is published of a flow, as logs have it. The README of the package explains every field.
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
		## Of the server that the client asked for, where Zeek knows it.
		server_name: string &log &optional;
	};

	## Takes a flow somewhere, early or final: onto the bus, into a log. Runs for each publication.
	global deliver: hook(c: connection, final: bool);

	## What is published of a flow, for bodies of :zeek:see:`Tapline::deliver` that want it as a record. `seq` is the number
	## of publications so far, all shards together.
	global flow_record: function(c: connection, final: bool): Flow;

	## Runs for each connection with payload that Zeek removed and no filter left out, before its final publication.
	global ended: hook(c: connection);

	## Flows that are published together: how many, and packed as the README says at `Tapline::flows`.
	type Batch: record {
		flows: count;
		packed: string;
	};

	## The shard's batch; a new one begins.
	global take: function(shard: count): Batch;

	## Shards of which flows wait, in order.
	global waiting_shards: function(): vector of count;

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
}

# The flow is due for its early publication: raised once the current packet's content is in, or by the deadline.
global early_due: event(c: connection);

# The name in use; `sensor` is what the site asked for.
global sensor_name = sensor;

# The extraction in script says so when a flow is to be published; the plugin does the same by itself.
function publish(c: connection, final: bool) &is_used
	{
	++counters$seq;
	if ( final )
		++counters$finals;
	else
		++counters$early;
	hook deliver(c, final);
	}

event zeek_init() &priority=10
	{
	if ( content_bytes > 256 )
		Reporter::fatal(fmt("Tapline::content_bytes must be 0 to 256, not %d", content_bytes));
	if ( heads != "none" && heads != "header" && heads != "full" )
		Reporter::fatal(fmt("Tapline::heads must be \"none\", \"header\" or \"full\", not \"%s\"", heads));
	sensor_name = sensor;
	}
