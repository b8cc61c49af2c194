##! The name of the server that a connection's client asked for, as Zeek knows it: the first of the names in a TLS, DTLS
##! or QUIC ClientHello, a DNS query or an HTTP Host. Evidence beside a verdict; no model reads it.
##!
##! Zeek's analyzers find it where they run: `zeek -b` runs those that are loaded, HTTP's before this package.

@load ./main

module Tapline;

export {
	## Longest name: that of a host name.
	const max_server_name = 255;

	## The name as Zeek knows it so far, "" where there is none.
	global server_name: function(c: connection): string;
}

redef record connection += {
	## The name of the server that the client asked for.
	tapline_server_name: string &optional;
};

# It is foreign text: what no host name and no address may have makes it none.
function note_name(c: connection, name: string)
	{
	if ( c?$tapline_server_name || |name| > max_server_name )
		return;
	if ( name == /[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?/ || is_valid_ip(name) )
		c$tapline_server_name = name;
	}

event ssl_extension_server_name(c: connection, is_client: bool, names: string_vec)
	{
	if ( is_client && |names| > 0 )
		note_name(c, names[0]);
	}

event dns_request(c: connection, msg: dns_msg, query: string, qtype: count, qclass: count)
	{
	note_name(c, to_lower(c$id$resp_p == 137/udp ? decode_netbios_name(query) : query));
	}

@ifdef ( HTTP::Info )
# Without port, and an address of IPv6 without brackets.
function note_host(c: connection)
	{
	if ( c?$http && c$http?$host )
		note_name(c, gsub(sub(c$http$host, /:[0-9]*$/, ""), /^\[|\]$/, ""));
	}

event http_message_done(c: connection, is_orig: bool, stat: http_message_stat)
	{
	if ( is_orig && ! c?$tapline_server_name )
		note_host(c);
	}
@endif

function server_name(c: connection): string
	{
@ifdef ( HTTP::Info )
	if ( ! c?$tapline_server_name && c?$http )
		note_host(c);
@endif
	return c?$tapline_server_name ? c$tapline_server_name : "";
	}
