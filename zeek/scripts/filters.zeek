##! Which connections are observed: what the site's options and its policy leave of them.

@load ./main

module Tapline;

function is_excluded(id: conn_id): bool &is_used
	{
	return id$orig_h in exclude_networks || id$resp_h in exclude_networks || id$orig_p in exclude_ports ||
	    id$resp_p in exclude_ports;
	}

# Whether a connection is observed, asked once, at its first packet.
function is_wanted(c: connection): bool &is_used
	{
	if ( |exclude_networks| + |exclude_ports| > 0 && is_excluded(c$id) )
		return F;
	return hook observe(c);
	}
