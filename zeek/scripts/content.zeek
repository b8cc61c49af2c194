##! First content bytes of a connection, each way: TCP in order up to the first gap, UDP datagrams joined. Other
##! protocols have none.

@load base/frameworks/cluster
@load ./main

module Tapline;

function end_content(c: connection, is_orig: bool)
	{
	if ( is_orig )
		c$tapline$orig_done = T;
	else
		c$tapline$resp_done = T;
	}

function add_content(c: connection, is_orig: bool, data: string)
	{
	local st = c$tapline;
	local have = is_orig ? |st$orig_bytes| : |st$resp_bytes|;
	local room = content_bytes - have;
	if ( |data| >= room )
		{
		data = data[0:room];
		end_content(c, is_orig);
		}
	if ( is_orig )
		st$orig_bytes += data;
	else
		st$resp_bytes += data;
	if ( ! st$early_due && early_bytes > 0 && |st$orig_bytes| + |st$resp_bytes| >= early_bytes )
		make_early_due(c);
	}

# Zeek delivers the stream of a connection until told to stop.
function stop_delivery(c: connection)
	{
	disable_analyzer(c$id, current_analyzer(), F);
	}

event stream_deliver(c: connection, is_orig: bool, data: string) &group="tapline-content"
	{
	if ( ! c?$tapline )
		return;
	local st = c$tapline;
	if ( ! st$observed )
		stop_delivery(c);
	else if ( ! (is_orig ? st$orig_done : st$resp_done) )
		{
		add_content(c, is_orig, data);
		if ( st$orig_done && st$resp_done )
			stop_delivery(c);
		}
	}

event stream_undelivered(c: connection, is_orig: bool, seq: count, len: count) &group="tapline-content"
	{
	if ( ! c?$tapline || ! c$tapline$observed || (is_orig ? c$tapline$orig_done : c$tapline$resp_done) )
		return;
	# A gap before any content only means that it starts later.
	if ( (is_orig ? |c$tapline$orig_bytes| : |c$tapline$resp_bytes|) == 0 )
		return;
	++counters$gaps;
	end_content(c, is_orig);
	if ( c$tapline$orig_done && c$tapline$resp_done )
		stop_delivery(c);
	}

event udp_contents(u: connection, is_orig: bool, contents: string) &group="tapline-content"
	{
	if ( ! u?$tapline )
		return;
	local st = u$tapline;
	if ( st$observed && ! (is_orig ? st$orig_done : st$resp_done) )
		add_content(u, is_orig, contents);
	}

event connection_flipped(c: connection) &group="tapline-content"
	{
	if ( ! c?$tapline )
		return;
	local st = c$tapline;
	local orig_bytes = st$orig_bytes;
	local orig_done = st$orig_done;
	st$orig_bytes = st$resp_bytes;
	st$orig_done = st$resp_done;
	st$resp_bytes = orig_bytes;
	st$resp_done = orig_done;
	}

redef udp_content_deliver_all_orig = T;
redef udp_content_deliver_all_resp = T;

event zeek_init()
	{
	if ( content_bytes == 0 )
		{
		disable_event_group("tapline-content");
		return;
		}
	# Only workers of a cluster see connections.
	if ( Cluster::is_enabled() && Cluster::local_node_type() != Cluster::WORKER )
		return;
	# An analyzer attaches by port, so to see every connection's stream it takes every port.
	local p = 0;
	while ( p < 65536 )
		{
		Analyzer::register_for_port(Analyzer::ANALYZER_STREAM_EVENT, count_to_port(p, tcp));
		++p;
		}
	}
