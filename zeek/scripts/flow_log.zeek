##! tapline_flow.log: each published flow as one line of JSON, for readers of capture files.

@load ./main

module Tapline;

export {
	redef enum Log::ID += { FLOW_LOG };

	global log_policy_flow: Log::PolicyHook;
}

hook deliver(c: connection, final: bool)
	{
	Log::write(FLOW_LOG, flow_record(c, final));
	}

event zeek_init() &priority=5
	{
	Log::create_stream(FLOW_LOG, [$columns=Flow, $path="tapline_flow", $policy=log_policy_flow]);
	local filter = Log::get_filter(FLOW_LOG, "default");
	filter$config = table(["use_json"] = "T");
	Log::add_filter(FLOW_LOG, filter);
	}
