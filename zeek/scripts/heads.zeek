##! Packet heads: the first bytes of a connection's first packets, as captured, from the link layer on. Knows where the
##! headers of the current packet lie; leaves lengths and publication to others.

@load ./state

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

# IPv6 extension headers that count their length in 8 octets and may come before the fragment header (RFC 8200, 4.1).
const extension_kinds: set[string] = { "\x00", "\x2b", "\x3c" };
const fragment_kind = "\x2c";

# Protocols of which an event has the transport header, if the packet was captured whole.
const protocols_with_header: set[count] = { 1, 6, 17, 58 };

# The packet source's link type, asked at the first packet; and whether it is Ethernet.
global source_link: int = -1;
global ethernet = F;

# Whether heads end with the transport header.
global header_only = F;

# Bytes before the IP header of most frames, where heads end with the transport header; otherwise more than a frame has.
global plain_bytes = 0xffffffff;

# Tracegram's link-type byte of heads, 0 where its table has none or there are no heads; raw IP's depends on the version.
global link_byte = 0;
global raw_ip = F;

function learn_link()
	{
	header_only = heads == "header";
	source_link = packet_source()$link_type;
	# Zeek's own reader of pcapng, since 8.2, has a link type for each packet, and tells a script of Ethernet alone.
	if ( source_link == -1 && get_current_packet_header()$l2$encap == LINK_ETHERNET )
		source_link = 1;
	ethernet = source_link == 1;
	if ( heads == "none" )
		return;
	if ( header_only && ethernet )
		plain_bytes = 14;
	else if ( header_only && source_link in link_header_bytes )
		plain_bytes = link_header_bytes[source_link];
	raw_ip = source_link in raw_ip_links;
	link_byte = link_type_bytes[source_link];
	}

function link_type_byte(c: connection): count
	{
	if ( raw_ip )
		return is_v6_addr(c$id$orig_h) ? 6 : 21;
	return link_byte;
	}

function address_hex(a: addr): string
	{
	local text = "";
	for ( _, n in addr_to_counts(a) )
		text += fmt("%08x", n);
	return text;
	}

# Where source and destination address stand next to each other in the frame, behind what may be the beginning of their IP
# header: under tunnels and rare link layers.
function searched_ip_offset(data: string, p: pkt_hdr, tunneled: bool): int
	{
	local pair = p?$ip ? address_hex(p$ip$src) + address_hex(p$ip$dst)
	                   : address_hex(p$ip6$src) + address_hex(p$ip6$dst);
	local before = p?$ip ? 12 : 8;
	local version = p?$ip ? "4" : "6";
	local hex = bytestring_to_hexstr(|data| > 512 ? data[0:512] : data);
	local found = -1;
	local at = find_str(hex, pair);
	while ( at >= 0 )
		{
		if ( at % 2 == 0 && at / 2 >= before && hex[at-2*before] == version )
			{
			found = at / 2 - before;
			if ( ! tunneled )
				break;
			}
		at = find_str(hex, pair, int_to_count(at + 1));
		}
	return found;
	}

# Offset of the frame's first IP header where the link layer alone tells it, or -1.
function link_bytes(data: string): int
	{
	if ( source_link in link_header_bytes )
		return link_header_bytes[source_link];
	if ( ! ethernet )
		return -1;
	local ether_type = data[12:14];
	if ( ether_type == "\x08\x00" || ether_type == "\x86\xdd" )
		return 14;
	if ( ether_type != "\x81\x00" )
		return -1;
	ether_type = data[16:18];
	return ether_type == "\x08\x00" || ether_type == "\x86\xdd" ? 18 : -1;
	}

# Offset of the packet's IP header in the frame, or -1.
function ip_offset(c: connection, data: string, p: pkt_hdr): int
	{
	if ( c?$tunnel )
		return searched_ip_offset(data, p, T);
	local offset = link_bytes(data);
	return offset < 0 ? searched_ip_offset(data, p, F) : offset;
	}

# IP length of a packet whose own header says 0.
function frame_ip_bytes(c: connection, p: pkt_hdr): count
	{
	local packet = get_current_packet();
	local offset = ip_offset(c, packet$data, p);
	return offset < 0 ? 0 : packet$len - int_to_count(offset);
	}

# The frame from the transport header on, which Zeek leaves out of the event where the snap length cut the packet; as far
# as it was captured, empty where nothing tells where it begins.
function captured_transport(c: connection, p: pkt_hdr): string
	{
	local data = get_current_packet()$data;
	local offset = ip_offset(c, data, p);
	if ( offset < 0 )
		return "";
	local at = int_to_count(offset) + (p?$ip ? p$ip$hl : 40 + extension_bytes(p$ip6));
	return at < |data| ? data[at:] : "";
	}

# Length of the TCP header; 20, the shortest, where the frame does not hold it.
function captured_tcp_bytes(c: connection, p: pkt_hdr): count
	{
	local segment = captured_transport(c, p);
	if ( |segment| <= 12 )
		return 20;
	local header = 4 * (bytestring_to_count(segment[12]) / 16);
	return header < 20 ? 20 : header;
	}

# Source port, or the ICMP type; 0 where the frame does not hold it.
function captured_source_port(c: connection, p: pkt_hdr): count
	{
	local segment = captured_transport(c, p);
	if ( |segment| < 2 )
		return 0;
	if ( c$id$proto == 6 || c$id$proto == 17 )
		return bytestring_to_count(segment[0:2]);
	return c$id$proto == 1 || c$id$proto == 58 ? bytestring_to_count(segment[0]) : 0;
	}

# Where the IP header at `start` ends if it is that of a fragment, with the fragment header of IPv6; otherwise 0.
function fragment_header_end(data: string, start: count): count
	{
	if ( |data| < start + 20 )
		return 0;
	local first = bytestring_to_count(data[start]);
	if ( first / 16 == 4 )
		return (bytestring_to_count(data[start+6:start+8]) & 0x3fff) > 0 ? start + 4 * (first & 0x0f) : 0;
	local kind = data[start+6];
	local at = start + 40;
	while ( kind in extension_kinds && |data| >= at + 8 )
		{
		kind = data[at];
		at += 8 * (bytestring_to_count(data[at+1]) + 1);
		}
	return kind == fragment_kind && |data| >= at + 8 ? at + 8 : 0;
	}

# Where the frame's own IP header ends if the event's packet was put together from fragments, of which the frame is one;
# otherwise 0. Then only the frame's own header tells what is in the frame: Zeek may still give the datagram's length as
# the frame's. `start` is where an IP header lies, the frame's first one is looked at in any case.
function fragment_end(c: connection, data: string, p: pkt_hdr, start: int): count
	{
	if ( ! c?$tunnel && p?$ip && ! p$ip$MF && p$ip$offset == 0 )
		return 0;
	# A first fragment cut by the snap length is not put together with others.
	if ( ! p?$tcp && ! p?$udp && ! p?$icmp && c$id$proto in protocols_with_header )
		return 0;
	local first = link_bytes(data);
	local end = first < 0 ? 0 : fragment_header_end(data, int_to_count(first));
	return end > 0 || start < 0 || start == first ? end : fragment_header_end(data, int_to_count(start));
	}

# Bytes of the frame up to the end of the transport header, given the packet's IP length and its payload's.
function header_bytes(c: connection, data: string, p: pkt_hdr, ip_bytes: count, payload: count): count
	{
	local offset = ip_offset(c, data, p);
	local end = fragment_end(c, data, p, offset);
	if ( end > 0 )
		return end;
	if ( offset < 0 )
		return |data|;
	return int_to_count(offset) + (ip_bytes > 0 ? ip_bytes - payload : p$ip$hl + transport_bytes(c, p));
	}

# Bytes of the frame that were captured; where it is a fragment, those up to the end of its IP packet.
function whole_bytes(c: connection, data: string, p: pkt_hdr): count
	{
	local first = link_bytes(data);
	if ( fragment_end(c, data, p, first) == 0 )
		return |data|;
	local start = int_to_count(first);
	local is_v4 = bytestring_to_count(data[start]) / 16 == 4;
	return start + (is_v4 ? bytestring_to_count(data[start+2:start+4]) : 40 + bytestring_to_count(data[start+4:start+6]));
	}

# Bytes of the frame that are kept as its head, as far as they were captured and the flow's budget goes.
function head_bytes(c: connection, data: string, p: pkt_hdr, payload: count): count
	{
	if ( header_only )
		return header_bytes(c, data, p, p?$ip ? p$ip$len : 40 + p$ip6$len, payload);
	return whole_bytes(c, data, p);
	}
