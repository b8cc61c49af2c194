##! Plays a capture file over the bus and loses nothing: waits for a service, makes every flow end while the bus still
##! works, marks the end and leaves when a service has confirmed it.

@load ./__load__

module Tapline;

export {
	## Topic on which a service confirms the end.
	const control_topic = "tapline/control" &redef;

	## Everything of this sensor has been published: `seq` is its last sequence number.
	global finished: event(version: count, sensor: string, seq: count);

	## A service's answer to :zeek:see:`Tapline::finished`, once it has read all before it.
	global finished_ack: event(version: count, sensor: string);

	## How long to wait for a service, and for the confirmation, before giving up.
	const replay_timeout = 60sec &redef;
}

redef exit_only_after_terminate = T;

global started = F;

event give_up(waited_for: string)
	{
	if ( waited_for == "a service" && started )
		return;
	Reporter::warning(fmt("Tapline gave up its replay: %s did not come within %s", waited_for, replay_timeout));
	terminate();
	}

event zeek_init() &priority=-10
	{
	suspend_processing();
	Cluster::subscribe(control_topic);
	schedule replay_timeout { give_up("a service") };
	}

event Cluster::websocket_client_added(endpoint: Cluster::EndpointInfo, subscriptions: string_vec)
	{
	if ( started )
		return;
	started = T;
	continue_processing();
	}

event end_of_flows()
	{
	publish_stats();
	Cluster::publish(stats_topic, Tapline::finished, format_version, sensor_name, counters$seq);
	schedule replay_timeout { give_up("the confirmation") };
	}

event Pcap::file_done(path: string)
	{
	# What ends while Zeek shuts down is lost to the bus, so let a day pass now: every connection expires.
	set_network_time(network_time() + 1day);
	schedule 1sec { end_of_flows() };
	}

event finished_ack(version: count, sensor: string) &is_used
	{
	terminate();
	}
