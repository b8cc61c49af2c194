# Plays the captures of a cluster's workers once a service is connected, and makes their flows end while the bus still works.

redef exit_only_after_terminate = T;
redef Log::default_rotation_interval = 0sec;
redef Log::default_rotation_postprocessor_cmd = "";
redef Tapline::early_packets = 0;
redef Tapline::early_interval = 0sec;
redef Tapline::early_bytes = 0;

module Tapline;

global go: event() &is_used;

@if ( Cluster::local_node_type() == Cluster::MANAGER )
global service_up = F;

function start_if_ready()
	{
	if ( service_up && Cluster::get_active_node_count(Cluster::WORKER) == 2 )
		Cluster::publish(Cluster::worker_topic, go);
	}

event Cluster::node_up(name: string, id: string)
	{
	start_if_ready();
	}

event Cluster::websocket_client_added(endpoint: Cluster::EndpointInfo, subscriptions: string_vec)
	{
	service_up = T;
	start_if_ready();
	}
@endif

@if ( Cluster::local_node_type() == Cluster::WORKER )
event zeek_init()
	{
	suspend_processing();
	}

event go()
	{
	continue_processing();
	}

event all_ended()
	{
	publish_stats();
	}

event Pcap::file_done(path: string)
	{
	set_network_time(network_time() + 1day);
	schedule 0sec { all_ended() };
	}
@endif
