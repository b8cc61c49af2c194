##! A flow as a record, from the state that the extraction in script keeps.

@load base/protocols/conn
@load ./state
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

# Heads as text: of each the time since the packet before it and its bytes.
function heads_text(st: State): string
	{
	local text = "";
	local start = 0;
	for ( i, n in st$head_numbers )
		{
		local size = n % gap_unit;
		local head = bytestring_to_hexstr(st$heads[start:start+size]);
		text += cat(i > 0 ? ";" : "", n / gap_unit, ":", head);
		start += size;
		}
	return text;
	}

# Payload packets from the first packet's sender, and back.
function payload_packets(st: State): vector of count
	{
	local ahead = st$ahead;
	for ( _, n in st$lengths )
		if ( n > 0 )
			++ahead;
	return vector(ahead, |st$lengths| + st$ahead + st$back - ahead);
	}

function flow_record(c: connection, final: bool): Flow
	{
	local st = c$tapline;
	local id = c$id;
	local straight = sent_by_orig(c);
	local packets = payload_packets(st);
	local f = Flow($version=format_version, $sensor=sensor_name, $seq=counters$seq, $final=final, $uid=c$uid,
	    $start_us=double_to_count(time_to_double(c$start_time) * 1000000.0),
	    $duration_us=c$duration > 0sec ? double_to_count(interval_to_double(c$duration) * 1000000.0) : 0,
	    $orig_h=id$orig_h, $orig_p=port_to_count(id$orig_p), $resp_h=id$resp_h, $resp_p=port_to_count(id$resp_p),
	    $proto=proto_name(c), $service=|c$service| > 0 ? to_lower(join_string_set(c$service, ",")) : "",
	    $conn_state=final && c?$conn && c$conn?$conn_state ? c$conn$conn_state : "",
	    $orig_pkts=c$orig?$num_pkts ? c$orig$num_pkts : 0, $resp_pkts=c$resp?$num_pkts ? c$resp$num_pkts : 0,
	    $orig_ip_bytes=c$orig?$num_bytes_ip ? c$orig$num_bytes_ip : 0,
	    $resp_ip_bytes=c$resp?$num_bytes_ip ? c$resp$num_bytes_ip : 0,
	    $up=packets[straight ? 0 : 1], $down=packets[straight ? 1 : 0],
	    $payload_lengths=lengths_text(st, straight), $orig_bytes=bytestring_to_hexstr(st$orig_bytes),
	    $resp_bytes=bytestring_to_hexstr(st$resp_bytes), $link_type=link_type_byte(c),
	    $heads_kind=heads, $heads=heads_text(st));
	local name = server_name(c);
	if ( name != "" )
		f$server_name = name;
	return f;
	}

