##! Extraction, publication and packing by the plugin Tapline::Native; where batches go is decided in the files that both
##! extractions share.

@load base/protocols/conn
@load ./main
@load ./filters

module Tapline;

export {
	## Whether the plugin extracts and packs.
	const native = T;
}

redef record connection += {
	## What the plugin keeps of a connection.
	tapline_flow: opaque of tapline_flow &optional;
};

# The plugin asks `is_wanted` at a connection's first packet, where options name networks or ports (`filtering`) or
# `observe` has a body.
function configure()
	{
	if ( ! native_configure(content_bytes, heads, early_packets, early_interval, early_bytes, publish_without_payload,
	    |exclude_networks| + |exclude_ports| > 0) )
		Reporter::fatal("Tapline's plugin does not belong to these scripts");
	}

# Runs once the options have their new values.
event options_changed()
	{
	configure();
	}

function count_changed(id: string, value: count): count
	{
	event options_changed();
	return value;
	}

function interval_changed(id: string, value: interval): interval
	{
	event options_changed();
	return value;
	}

function bool_changed(id: string, value: bool): bool
	{
	event options_changed();
	return value;
	}

function networks_changed(id: string, value: set[subnet]): set[subnet]
	{
	event options_changed();
	return value;
	}

function ports_changed(id: string, value: set[port]): set[port]
	{
	event options_changed();
	return value;
	}

event zeek_init() &priority=5
	{
	configure();
	Option::set_change_handler("Tapline::early_packets", count_changed);
	Option::set_change_handler("Tapline::early_bytes", count_changed);
	Option::set_change_handler("Tapline::early_interval", interval_changed);
	Option::set_change_handler("Tapline::publish_without_payload", bool_changed);
	Option::set_change_handler("Tapline::exclude_networks", networks_changed);
	Option::set_change_handler("Tapline::exclude_ports", ports_changed);
	}

function take(shard: count): Batch &is_used
	{
	return native_take(shard) as Batch;
	}

function waiting_shards(): vector of count &is_used
	{
	return native_waiting_shards();
	}

# The plugin knows neither the sensor, nor how many were published, nor names.
function flow_record(c: connection, final: bool): Flow
	{
	local f = native_flow(c, final) as Flow;
	f$version = format_version;
	f$sensor = sensor_name;
	f$seq = counters$seq;
	local name = server_name(c);
	if ( name != "" )
		f$server_name = name;
	return f;
	}

event early_due(c: connection) &is_used
	{
	native_early(c);
	}

event connection_state_remove(c: connection)
	{
	native_remove(c);
	}
