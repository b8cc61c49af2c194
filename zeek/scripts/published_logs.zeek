##! ps.log and raw.log in the layout of the published MM4flow scripts, so that their tools read what this package sees.

@load ./main
@load ./publish

module Tapline;

export {
	redef enum Log::ID += { PS_LOG, RAW_LOG };

	global log_policy_ps: Log::PolicyHook;
	global log_policy_raw: Log::PolicyHook;

	## Columns of ps.log; `ps` codes runs of equal lengths as "length:count".
	type PsInfo: record {
		ts: time &log;
		uid: string &log;
		id: conn_id &log;
		proto: transport_proto &log;
		up: int &log;
		down: int &log;
		ps: vector of string &log;
	};

	## Columns of raw.log.
	type RawInfo: record {
		ts: time &log;
		uid: string &log;
		id: conn_id &log;
		proto: transport_proto &log;
		fwd_raw: string &log;
		bwd_raw: string &log;
	};
}

# Run-length coding of the kept lengths, positive from the originator.
function runs(c: connection): vector of string
	{
	local coded: vector of string = vector();
	local sign = sent_by_orig(c) ? +1 : -1;
	local last = +0;
	local times = 0;
	for ( _, n in c$tapline$lengths )
		{
		if ( n == last )
			{
			++times;
			next;
			}
		if ( times > 0 )
			coded += fmt("%d:%d", sign * last, times);
		last = n;
		times = 1;
		}
	if ( times > 0 )
		coded += fmt("%d:%d", sign * last, times);
	return coded;
	}

event connection_state_remove(c: connection) &priority=-5
	{
	if ( ! c?$tapline || ! c$tapline$observed )
		return;
	local st = c$tapline;
	local transport = get_port_transport_proto(c$id$resp_p);
	local straight = sent_by_orig(c);
	if ( st$ahead + st$back > 0 )
		Log::write(PS_LOG, PsInfo($ts=c$start_time, $uid=c$uid, $id=c$id, $proto=transport,
		    $up=straight ? st$ahead : st$back, $down=straight ? st$back : st$ahead, $ps=runs(c)));
	if ( |st$orig_bytes| + |st$resp_bytes| > 0 )
		Log::write(RAW_LOG, RawInfo($ts=c$start_time, $uid=c$uid, $id=c$id, $proto=transport,
		    $fwd_raw=bytestring_to_hexstr(st$orig_bytes), $bwd_raw=bytestring_to_hexstr(st$resp_bytes)));
	}

event zeek_init() &priority=5
	{
	Log::create_stream(PS_LOG, [$columns=PsInfo, $path="ps", $policy=log_policy_ps]);
	Log::create_stream(RAW_LOG, [$columns=RawInfo, $path="raw", $policy=log_policy_raw]);
	}
