##! ps.log and raw.log in the layout of the published MM4flow scripts, so that their tools read what this package sees.

@load ./main

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

# Run-length coding of lengths as the record has them.
function runs(payload_lengths: string): vector of string
	{
	local coded: vector of string = vector();
	local last = "";
	local times = 0;
	for ( _, n in split_string(payload_lengths, /,/) )
		{
		if ( n == last )
			{
			++times;
			next;
			}
		if ( times > 0 )
			coded += fmt("%s:%d", last, times);
		last = n;
		times = 1;
		}
	if ( times > 0 )
		coded += fmt("%s:%d", last, times);
	return coded;
	}

hook ended(c: connection)
	{
	local f = flow_record(c, T);
	local transport = get_port_transport_proto(c$id$resp_p);
	if ( f$payload_lengths != "" )
		Log::write(PS_LOG, PsInfo($ts=c$start_time, $uid=c$uid, $id=c$id, $proto=transport, $up=f$up, $down=f$down,
		    $ps=runs(f$payload_lengths)));
	if ( |f$orig_bytes| + |f$resp_bytes| > 0 )
		Log::write(RAW_LOG, RawInfo($ts=c$start_time, $uid=c$uid, $id=c$id, $proto=transport, $fwd_raw=f$orig_bytes,
		    $bwd_raw=f$resp_bytes));
	}

event zeek_init() &priority=5
	{
	Log::create_stream(PS_LOG, [$columns=PsInfo, $path="ps", $policy=log_policy_ps]);
	Log::create_stream(RAW_LOG, [$columns=RawInfo, $path="raw", $policy=log_policy_raw]);
	}
