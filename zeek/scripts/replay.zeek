##! Plays a capture file over the bus and loses nothing: waits for a service, makes every flow end while the bus still
##! works, marks the end and leaves when a service has confirmed it. Zeek's timers stand still until the first packet, so
##! the wait for a service has no end of its own: who starts a replay bounds it.

@load ./__load__

module Tapline;

export {
	## Topic on which a service confirms the end.
	const control_topic = "tapline/control" &redef;

	## Everything of this sensor has been published: `seq` is its last sequence number.
	global finished: event(version: count, sensor: string, seq: count);

	## A service's answer to :zeek:see:`Tapline::finished`, once it has read all before it.
	global finished_ack: event(version: count, sensor: string);
}

redef exit_only_after_terminate = T;

# Beyond these bounds ZeroMQ's queues shed what is published.
@ifdef ( Cluster::Backend::ZeroMQ::xpub_sndhwm )
redef Cluster::Backend::ZeroMQ::xpub_sndhwm = 0;
redef Cluster::Backend::ZeroMQ::xsub_rcvhwm = 0;
redef Cluster::Backend::ZeroMQ::onloop_queue_hwm = 0;
@endif

global clients = 0;
global started = F;
global at_end = F;

event zeek_init() &priority=-10
	{
	suspend_processing();
	Cluster::subscribe(control_topic);
	}

event Cluster::websocket_client_added(endpoint: Cluster::EndpointInfo, subscriptions: string_vec)
	{
	++clients;
	if ( started )
		return;
	started = T;
	continue_processing();
	}

# Without a service nobody is left to confirm the end.
function leave_if_alone()
	{
	if ( clients > 0 )
		return;
	Reporter::warning("Tapline's replay ended without a service to confirm it: flows may be lost");
	terminate();
	}

event Cluster::websocket_client_lost(endpoint: Cluster::EndpointInfo, code: count, reason: string)
	{
	--clients;
	if ( at_end && ! zeek_is_terminating() )
		leave_if_alone();
	}

# What ends while Zeek shuts down is lost to the bus: let days pass now, until the last connection has expired. Timers
# run in order of time, so one for the new now comes after those of all connections.
event pass_a_day()
	{
	if ( get_conn_stats()$current_conns > 0 )
		{
		set_network_time(network_time() + 1day);
		schedule 0sec { pass_a_day() };
		return;
		}
	publish_stats();
	Cluster::publish(stats_topic, Tapline::finished, format_version, sensor_name, counters$seq);
	at_end = T;
	leave_if_alone();
	}

event Pcap::file_done(path: string)
	{
	event pass_a_day();
	}

event finished_ack(version: count, sensor: string) &is_used
	{
	terminate();
	}
