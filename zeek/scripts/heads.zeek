##! Packet heads: the first bytes of a connection's first packets, as captured, from the link layer on. Knows where the
##! headers of the current packet lie; leaves lengths and publication to others.

@load ./main

module Tapline;

# Link-type bytes that Tracegram's tokens use, by libpcap's link type; 12, 14 and 101 are raw IP.
const link_type_bytes: table[int] of count = {
	[0] = 1, [108] = 1, [1] = 3, [113] = 9, [276] = 20, [228] = 21, [229] = 6,
} &default=0;
const raw_ip_links: set[int] = { 12, 14, 101 };

# Bytes before the IP header where the link layer has no options; others are searched.
const link_header_bytes: table[int] of count = {
	[0] = 4, [108] = 4, [113] = 16, [276] = 20, [12] = 0, [14] = 0, [101] = 0, [228] = 0, [229] = 0,
};

# The packet source's link type, asked at the first packet; and whether it is Ethernet.
global source_link: int = -1;
global ethernet = F;

# Whether heads end with the transport header.
global header_only = F;

function learn_link()
	{
	header_only = heads == "header";
	source_link = packet_source()$link_type;
	ethernet = source_link == 1;
	}

# Tracegram's link-type byte for a connection's heads; 0 where its table has none.
function link_type_byte(c: connection): count
	{
	if ( heads == "none" )
		return 0;
	if ( source_link in raw_ip_links )
		return is_v6_addr(c$id$orig_h) ? 6 : 21;
	return link_type_bytes[source_link];
	}

function address_hex(a: addr): string
	{
	local text = "";
	for ( _, n in addr_to_counts(a) )
		text += fmt("%08x", n);
	return text;
	}

# Where source and destination address stand next to each other in the frame: under tunnels and rare link layers.
function searched_ip_offset(data: string, p: pkt_hdr, tunneled: bool): int
	{
	local pair = p?$ip ? address_hex(p$ip$src) + address_hex(p$ip$dst)
	                   : address_hex(p$ip6$src) + address_hex(p$ip6$dst);
	local before = p?$ip ? 12 : 8;
	local hex = bytestring_to_hexstr(|data| > 512 ? data[0:512] : data);
	local found = -1;
	local at = find_str(hex, pair);
	while ( at >= 0 )
		{
		if ( at % 2 == 0 && at / 2 >= before )
			{
			found = at / 2 - before;
			if ( ! tunneled )
				break;
			}
		at = find_str(hex, pair, int_to_count(at + 1));
		}
	return found;
	}

# Offset of the packet's IP header in the frame, or -1.
function ip_offset(c: connection, data: string, p: pkt_hdr): int
	{
	if ( c?$tunnel )
		return searched_ip_offset(data, p, T);
	if ( source_link in link_header_bytes )
		return link_header_bytes[source_link];
	if ( ethernet )
		{
		local ether_type = data[12:14];
		if ( ether_type == "\x08\x00" || ether_type == "\x86\xdd" )
			return 14;
		if ( ether_type == "\x81\x00" )
			{
			ether_type = data[16:18];
			if ( ether_type == "\x08\x00" || ether_type == "\x86\xdd" )
				return 18;
			}
		}
	return searched_ip_offset(data, p, F);
	}

# IP length of a packet whose own header says 0.
function frame_ip_bytes(c: connection, p: pkt_hdr): count
	{
	local packet = get_current_packet();
	local offset = ip_offset(c, packet$data, p);
	return offset < 0 ? 0 : packet$len - int_to_count(offset);
	}

# Length of a TCP header that Zeek left out of the event; 20, the shortest, where the frame does not hold it either.
function captured_tcp_bytes(c: connection, p: pkt_hdr): count
	{
	local data = get_current_packet()$data;
	local offset = ip_offset(c, data, p);
	if ( offset < 0 )
		return 20;
	local at = int_to_count(offset) + (p?$ip ? p$ip$hl : 40 + extension_bytes(p$ip6)) + 12;
	if ( at >= |data| )
		return 20;
	local header = 4 * (bytestring_to_count(data[at]) / 16);
	return header < 20 ? 20 : header;
	}

# IP length as the frame itself has it, which differs from the event's when the datagram came in fragments.
function frame_ip_field(data: string, p: pkt_hdr, start: count): count
	{
	return p?$ip ? bytestring_to_count(data[start+2:start+4]) : 40 + bytestring_to_count(data[start+4:start+6]);
	}

# Bytes of the frame up to the end of the transport header, given the packet's IP length and its payload's.
function header_bytes(c: connection, data: string, p: pkt_hdr, ip_bytes: count, payload: count): count
	{
	local offset = ip_offset(c, data, p);
	if ( offset < 0 )
		return |data|;
	local start = int_to_count(offset);
	if ( ip_bytes == 0 )
		return start + p$ip$hl + transport_bytes(c, p);
	# The frame may have completed a fragmented datagram: then it holds no transport header, and IPv6 has a fragment
	# header of 8 bytes in its place.
	if ( frame_ip_field(data, p, start) != ip_bytes )
		return p?$ip ? start + p$ip$hl : start + 48;
	return start + ip_bytes - payload;
	}

# Keep the head of the current packet, as far as the flow's token budget goes.
function add_head(c: connection, p: pkt_hdr, payload: count)
	{
	local st = c$tapline;
	local packet = get_current_packet();
	local keep = packet$caplen;
	if ( header_only )
		{
		local ip_bytes = p?$ip ? p$ip$len : 40 + p$ip6$len;
		# Most frames are an Ethernet header and the packet. Those of 60 or 64 bytes may be padded, so they are looked into.
		if ( ethernet && keep == 14 + ip_bytes && keep != 60 && keep != 64 && ! c?$tunnel )
			keep -= payload;
		else
			keep = header_bytes(c, packet$data, p, ip_bytes, payload);
		}
	if ( keep > packet$caplen )
		keep = packet$caplen;
	if ( keep + head_token_cost > st$heads_left )
		keep = st$heads_left - head_token_cost;
	st$heads_left -= keep + head_token_cost;
	if ( st$heads_left < head_token_cost )
		st$heads_left = 0;
	local now_us = packet$ts_sec * 1000000 + packet$ts_usec;
	local hex = bytestring_to_hexstr(keep < packet$caplen ? packet$data[0:keep] : packet$data);
	if ( st$last_packet_us == 0 )
		st$heads = "0:" + hex;
	else
		st$heads += cat(";", now_us > st$last_packet_us ? now_us - st$last_packet_us : 0, ":", hex);
	st$last_packet_us = now_us;
	}
