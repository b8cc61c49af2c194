##! When a flow is published, by the state that the extraction in script keeps.

@load base/protocols/conn
@load ./state

module Tapline;

# Grows with everything that a verdict may depend on.
function mark(st: State): count
	{
	return |st$lengths| + st$ahead + st$back + |st$orig_bytes| + |st$resp_bytes| + |st$heads| + |st$head_numbers|;
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
	publish(now, F);
	}

event connection_state_remove(c: connection)
	{
	if ( ! c?$tapline )
		{
		if ( c?$tapline_left_out )
			++counters$filtered;
		else
			++counters$without_payload;
		return;
		}
	local st = c$tapline;
	st$closed = T;
	if ( st$ahead + st$back > 0 )
		++counters$cut;
	if ( |st$lengths| == 0 && ! publish_without_payload )
		{
		++counters$without_payload;
		return;
		}
	hook ended(c);
	if ( st$early && mark(st) == st$early_mark )
		++counters$unchanged;
	else
		publish(c, T);
	}
