##! Signed payload lengths of a connection, and where its other features start. Does the least it can per packet:
##! a connection that has all it needs is only counted.

@load ./state
@load ./filters
@load ./heads

module Tapline;

# Bytes of an IPv6 packet's extension headers.
function extension_bytes(ip6: ip6_hdr): count
	{
	local total = 0;
	for ( _, ext in ip6$exts )
		{
		# RFC 8200: 8-octet units without the first 8 octets; RFC 4302: 4-octet units, less 2.
		if ( ext?$hopopts )
			total += 8 * (ext$hopopts$len + 1);
		else if ( ext?$dstopts )
			total += 8 * (ext$dstopts$len + 1);
		else if ( ext?$routing )
			total += 8 * (ext$routing$len + 1);
		else if ( ext?$fragment )
			total += 8;
		else if ( ext?$ah )
			total += 4 * (ext$ah$len + 2);
		}
	return total;
	}

# Bytes of the transport header. Zeek may leave the header out of the event when the snap length cut the packet.
function transport_bytes(c: connection, p: pkt_hdr): count
	{
	if ( p?$tcp )
		return p$tcp$hl;
	if ( c$id$proto == 6 )
		return captured_tcp_bytes(c, p);
	if ( c$id$proto == 17 || c$id$proto == 1 || c$id$proto == 58 )
		return 8;
	return 0;
	}

# Payload bytes by the IP header, whatever was captured.
function payload_bytes(c: connection, p: pkt_hdr): count
	{
	local ip_bytes: count;
	if ( p?$ip )
		# Segmentation offload can leave the IP length 0: then only the frame tells.
		ip_bytes = p$ip$len > 0 ? p$ip$len : frame_ip_bytes(c, p);
	else
		ip_bytes = 40 + p$ip6$len;
	local headers = transport_bytes(c, p);
	headers += p?$ip ? p$ip$hl : 40 + extension_bytes(p$ip6);
	return ip_bytes > headers ? ip_bytes - headers : 0;
	}

# Source port, or the ICMP type. Zeek may leave the header out of the event when the snap length cut the packet.
function source_port(c: connection, p: pkt_hdr): count
	{
	if ( p?$tcp )
		return port_to_count(p$tcp$sport);
	if ( p?$udp )
		return port_to_count(p$udp$sport);
	return p?$icmp ? p$icmp$icmp_type : captured_source_port(c, p);
	}

# Whether the connection is observed, whose first packet this may be.
function begin(c: connection, p: pkt_hdr): bool
	{
	if ( c?$tapline_left_out )
		return F;
	if ( source_link < 0 )
		learn_link();
	if ( ! is_wanted(c) )
		{
		c$tapline_left_out = T;
		return F;
		}
	local st = State($first_h=p?$ip ? p$ip$src : p$ip6$src, $orig_room=content_bytes, $resp_room=content_bytes);
	c$tapline = st;
	if ( c$id$orig_h == c$id$resp_h )
		{
		st$same_host = T;
		st$first_p = source_port(c, p);
		}
	if ( content_bytes > 0 )
		c$tapline_takes_content = T;
	if ( heads != "none" )
		st$heads_left = heads_token_budget;
	return T;
	}

# Whether the first packet's sender is what Zeek now takes for the originator.
function sent_by_orig(c: connection): bool
	{
	local st = c$tapline;
	return st$first_h == c$id$orig_h && (! st$same_host || st$first_p == port_to_count(c$id$orig_p));
	}

# Publishes after the events of the current packet, so that its content is in.
function make_early_due(c: connection)
	{
	c$tapline$early_due = T;
	event early_due(c);
	}

event new_packet(c: connection, p: pkt_hdr)
	{
	if ( ! c?$tapline && ! begin(c, p) )
		return;
	local st = c$tapline;
	# Zeek has no transport header for a packet whose IP length is 0.
	local n = p?$tcp ? p$tcp$dl : p?$udp && p?$ip ? p$ip$len - p$ip$hl - 8 : payload_bytes(c, p);
	if ( st$heads_left >= head_token_cost )
		{
		local packet = get_current_packet();
		local room = st$heads_left - head_token_cost;
		# An IP packet that fills the frame behind the link layer's header: no tag and no tunnel leaves room for that.
		local keep = (p?$ip ? packet$len == plain_bytes + p$ip$len && ! p$ip$MF && p$ip$offset == 0
		                    : packet$len == plain_bytes + 40 + p$ip6$len && |p$ip6$exts| == 0 &&
		                      packet$data[plain_bytes+6] != fragment_kind)
		    ? packet$len - n : head_bytes(c, packet$data, p, n);
		local head = packet$data[0:keep < room ? keep : room];
		st$heads += head;
		local size = |head|;
		st$heads_left = room - size;
		local now_us = packet$ts_sec * 1000000 + packet$ts_usec;
		st$head_numbers += now_us > st$last_packet_us ? (now_us - st$last_packet_us) * gap_unit + size : size;
		st$last_packet_us = now_us;
		}
	if ( n == 0 )
		return;

	local forward = st$same_host ? source_port(c, p) == st$first_p
	                             : (p?$ip ? p$ip$src : p$ip6$src) == st$first_h;
	local kept = |st$lengths|;
	if ( kept == max_payload_lengths )
		{
		if ( forward )
			++st$ahead;
		else
			++st$back;
		return;
		}
	st$lengths += forward ? +n : -n;
	if ( kept > early_packets )
		return;
	if ( kept + 1 == early_packets )
		{
		if ( ! st$early_due )
			make_early_due(c);
		}
	else if ( kept == 0 && early_interval > 0sec )
		schedule early_interval { early_due(c) };
	}
