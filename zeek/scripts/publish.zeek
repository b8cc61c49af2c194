##! When a flow is published, early or final, and the record that is published. Where it goes is up to the hook's bodies.

@load base/protocols/conn
@load ./main
@load ./heads
@load ./server_names

module Tapline;

function proto_name(c: connection): string
	{
	switch ( c$id$proto )
		{
		case 6: return "tcp";
		case 17: return "udp";
		case 1, 58: return "icmp";
		default: return cat(c$id$proto);
		}
	}

# Lengths as text, positive from the originator.
function lengths_text(st: State, straight: bool): string
	{
	local lengths = st$lengths;
	if ( ! straight )
		{
		lengths = vector();
		for ( _, n in st$lengths )
			lengths += -n;
		}
	# "[517, -1448]": cheaper than joining in a loop.
	local text = cat(lengths);
	return subst_string(text[1:-1], ", ", ",");
	}

function build_flow(c: connection, final: bool): Flow
	{
	local st = c$tapline;
	local id = c$id;
	local straight = sent_by_orig(c);
	local f = Flow($version=format_version, $sensor=sensor_name, $seq=++counters$seq, $final=final, $uid=c$uid,
	    $start_us=double_to_count(time_to_double(c$start_time) * 1000000.0),
	    $duration_us=c$duration > 0sec ? double_to_count(interval_to_double(c$duration) * 1000000.0) : 0,
	    $orig_h=id$orig_h, $orig_p=port_to_count(id$orig_p), $resp_h=id$resp_h, $resp_p=port_to_count(id$resp_p),
	    $proto=proto_name(c), $service=|c$service| > 0 ? to_lower(join_string_set(c$service, ",")) : "",
	    $conn_state=final && c?$conn && c$conn?$conn_state ? c$conn$conn_state : "",
	    $orig_pkts=c$orig?$num_pkts ? c$orig$num_pkts : 0, $resp_pkts=c$resp?$num_pkts ? c$resp$num_pkts : 0,
	    $orig_ip_bytes=c$orig?$num_bytes_ip ? c$orig$num_bytes_ip : 0,
	    $resp_ip_bytes=c$resp?$num_bytes_ip ? c$resp$num_bytes_ip : 0,
	    $up=straight ? st$ahead : st$back, $down=straight ? st$back : st$ahead,
	    $payload_lengths=lengths_text(st, straight), $orig_bytes=bytestring_to_hexstr(st$orig_bytes),
	    $resp_bytes=bytestring_to_hexstr(st$resp_bytes), $link_type=link_type_byte(c),
	    $heads_kind=heads, $heads=st$heads);
	local name = server_name(c);
	if ( name != "" )
		f$server_name = name;
	return f;
	}

# Grows with everything that a verdict may depend on.
function mark(st: State): count
	{
	return st$ahead + st$back + |st$orig_bytes| + |st$resp_bytes| + |st$heads|;
	}

# Both sides of a TCP connection are done: Zeek removes it within seconds.
function is_over(c: connection): bool
	{
	if ( get_port_transport_proto(c$id$resp_p) != tcp )
		return F;
	if ( c$orig$state == TCP_RESET || c$resp$state == TCP_RESET )
		return T;
	return c$orig$state == TCP_CLOSED && c$resp$state == TCP_CLOSED;
	}

event early_due(c: connection)
	{
	local st = c$tapline;
	if ( st$early || st$closed || zeek_is_terminating() )
		return;
	# Looking it up brings the packet counts of the record up to date. What comes back must be used, because -O ZAM leaves
	# out calls whose result is not; and it may be another connection, since two of ICMP errors can have the same ports.
	local now = connection_exists(c$id) ? lookup_connection(c$id) : c;
	if ( now$uid != c$uid )
		now = c;
	# The deadline alone is no reason to publish what is published as final in a moment.
	if ( ! st$early_due && is_over(now) )
		return;
	st$early_due = T;
	st$early = T;
	st$early_mark = mark(st);
	++counters$early;
	hook deliver(now, build_flow(now, F));
	}

event connection_state_remove(c: connection)
	{
	if ( ! c?$tapline )
		{
		++counters$without_payload;
		return;
		}
	local st = c$tapline;
	st$closed = T;
	if ( ! st$observed )
		++counters$filtered;
	else if ( st$ahead + st$back == 0 && ! publish_without_payload )
		++counters$without_payload;
	else if ( st$early && mark(st) == st$early_mark )
		++counters$unchanged;
	else
		{
		++counters$finals;
		hook deliver(c, build_flow(c, T));
		}
	if ( st$ahead + st$back > max_payload_lengths )
		++counters$cut;
	}
