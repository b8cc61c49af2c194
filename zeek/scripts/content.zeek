##! First content bytes of a connection, each way: TCP in order up to the first gap, UDP datagrams joined. Other
##! protocols have none.

@load ./state

module Tapline;

function end_content(c: connection, st: State, is_orig: bool)
	{
	if ( is_orig )
		st$orig_room = 0;
	else
		st$resp_room = 0;
	if ( st$orig_room + st$resp_room == 0 )
		delete c$tapline_takes_content;
	}

function add_content(c: connection, st: State, is_orig: bool, room: count, data: string)
	{
	if ( |data| > room )
		data = data[0:room];
	if ( is_orig )
		{
		st$orig_bytes += data;
		st$orig_room = room - |data|;
		}
	else
		{
		st$resp_bytes += data;
		st$resp_room = room - |data|;
		}
	if ( st$orig_room + st$resp_room == 0 )
		delete c$tapline_takes_content;
	if ( ! st$early_due && early_bytes > 0 && |st$orig_bytes| + |st$resp_bytes| >= early_bytes )
		make_early_due(c);
	}

# The stream-event analyzer could be stopped once a flow is full, but Zeek does not attach it where a connection's analyzer
# was scheduled, as for FTP data.
event tcp_contents(c: connection, is_orig: bool, seq: count, contents: string) &group="tapline-content"
	{
	if ( ! c?$tapline_takes_content )
		return;
	local st = c$tapline;
	local room = is_orig ? st$orig_room : st$resp_room;
	if ( room == 0 )
		return;
	# What comes after a gap is left out; a stream whose beginning was not seen starts with what was.
	local next_seq = is_orig ? st$orig_next : st$resp_next;
	if ( next_seq > 0 && seq != next_seq )
		{
		++counters$gaps;
		end_content(c, st, is_orig);
		return;
		}
	if ( is_orig )
		st$orig_next = seq + |contents|;
	else
		st$resp_next = seq + |contents|;
	add_content(c, st, is_orig, room, contents);
	}

event udp_contents(u: connection, is_orig: bool, contents: string) &group="tapline-content"
	{
	if ( ! u?$tapline_takes_content )
		return;
	local st = u$tapline;
	local room = is_orig ? st$orig_room : st$resp_room;
	if ( room > 0 )
		add_content(u, st, is_orig, room, contents);
	}

event connection_flipped(c: connection) &group="tapline-content"
	{
	if ( ! c?$tapline )
		return;
	local st = c$tapline;
	local orig_bytes = st$orig_bytes;
	local orig_next = st$orig_next;
	local orig_room = st$orig_room;
	st$orig_bytes = st$resp_bytes;
	st$orig_next = st$resp_next;
	st$orig_room = st$resp_room;
	st$resp_bytes = orig_bytes;
	st$resp_next = orig_next;
	st$resp_room = orig_room;
	}

redef tcp_content_deliver_all_orig = T;
redef tcp_content_deliver_all_resp = T;
redef udp_content_deliver_all_orig = T;
redef udp_content_deliver_all_resp = T;

event zeek_init()
	{
	if ( content_bytes == 0 )
		disable_event_group("tapline-content");
	}
