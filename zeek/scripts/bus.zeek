##! Publishing flows on the bus, and the WebSocket server through which services reach it.

@load base/frameworks/cluster
@load base/utils/site
@load ./main

# From 8.1 on a single Zeek has no cluster backend unless one is loaded, and drops what is published. Broker's connects
# nothing and listens nowhere; where Zeek is built without it, ZeroMQ's runs its exchange on ports 5555 and 5556.
@ifdef ( Cluster::CLUSTER_BACKEND_NONE )
@if ( Cluster::backend == Cluster::CLUSTER_BACKEND_NONE && ! Cluster::is_enabled() && ! Supervisor::is_supervisor() )
@ifdef ( Cluster::CLUSTER_BACKEND_BROKER )
@load frameworks/cluster/backend/broker
@else
@load frameworks/cluster/backend/zeromq
redef Cluster::Backend::ZeroMQ::run_proxy_thread = T;
@endif
@endif
@endif

module Tapline;

export {
	## Topics of flows begin with this; the shard's number follows.
	const flows_topic = "tapline/flows/" &redef;

	## Number of shards: several services share the load by subscribing to some each. Shard numbers are padded with
	## zeros to one width, because a subscription takes every topic that begins with it.
	const shards = 1 &redef;

	## Whose flows stay together in one shard: "orig", "resp", or "local" (the endpoint in Site::local_nets, the
	## originator where both or neither are).
	const shard_by = "orig" &redef;

	## Address and port of the WebSocket server. 0/tcp: no server, for sites that open one themselves.
	const listen_addr = 127.0.0.1 &redef;
	const listen_port = 27759/tcp &redef;

	## Certificate and key in PEM; both set: the server speaks TLS.
	const tls_cert_file = "" &redef;
	const tls_key_file = "" &redef;

	## CA in PEM; set: clients must show a certificate that it signed.
	const tls_client_ca_file = "" &redef;

	## The cluster node that serves the bus and takes verdicts. Empty: the manager.
	const serving_node = "" &redef;

	## Time that a flow waits at most for others to be published with; 0sec: none.
	option publish_delay: interval = 50msec;

	## Flows that are published together at most.
	const publish_together = 64;

	## Whether this process is the one that serves the bus and takes verdicts.
	global is_serving: function(): bool;

	## Whether a node of the cluster is.
	global serves: function(node: string): bool;
}

function serves(node: string): bool
	{
	if ( serving_node != "" )
		return node == serving_node;
	return node in Cluster::nodes && Cluster::nodes[node]$node_type == Cluster::MANAGER;
	}

function is_serving(): bool
	{
	if ( Supervisor::is_supervisor() )
		return F;
	return ! Cluster::is_enabled() || serves(Cluster::node);
	}

function subject(f: Flow): addr
	{
	if ( shard_by == "orig" )
		return f$orig_h;
	if ( shard_by == "resp" )
		return f$resp_h;
	return Site::is_local_addr(f$resp_h) && ! Site::is_local_addr(f$orig_h) ? f$resp_h : f$orig_h;
	}

function topic_of(f: Flow): string
	{
	local shard = cat(fnv1a32(subject(f)) % shards);
	while ( |shard| < |cat(shards - 1)| )
		shard = "0" + shard;
	return flows_topic + shard;
	}

# A service that takes some shards only must see holes in those alone, so each shard counts by itself.
global shard_seqs: table[string] of count &default=0;

type Flows: vector of Flow;

# Runs before flows go out together.
global publishing: hook(flows: Flows);

# Flows that go out together, which wakes the threads of the bus once and not for each.
global waiting: Flows;

function publish_waiting()
	{
	hook publishing(waiting);
	local topic = flows_topic + "0";
	for ( _, f in waiting )
		{
		if ( shards > 1 )
			{
			topic = topic_of(f);
			f$seq = ++shard_seqs[topic];
			}
		Cluster::publish(topic, Tapline::flow, f$version, f$sensor, f$seq, f$final, f$uid, f$start_us,
		    f$duration_us, f$orig_h, f$orig_p, f$resp_h, f$resp_p, f$proto, f$service, f$conn_state, f$orig_pkts,
		    f$resp_pkts, f$orig_ip_bytes, f$resp_ip_bytes, f$up, f$down, f$payload_lengths, f$orig_bytes,
		    f$resp_bytes, f$link_type, f$heads_kind, f$heads);
		}
	waiting = vector();
	}

event publish_due()
	{
	publish_waiting();
	}

hook deliver(c: connection, f: Flow)
	{
	waiting += f;
	if ( |waiting| >= publish_together || publish_delay == 0sec )
		publish_waiting();
	else if ( |waiting| == 1 )
		schedule publish_delay { publish_due() };
	}

function open_server()
	{
	local tls = Cluster::WebSocketTLSOptions();
	if ( tls_cert_file != "" || tls_key_file != "" )
		{
		tls$cert_file = tls_cert_file;
		tls$key_file = tls_key_file;
		}
	if ( tls_client_ca_file != "" )
		{
		tls$enable_peer_verification = T;
		tls$ca_file = tls_client_ca_file;
		}
	local options = Cluster::WebSocketServerOptions($listen_addr=listen_addr, $listen_port=listen_port,
	    $tls_options=tls);
	if ( ! Cluster::listen_websocket(options) )
		Reporter::fatal(fmt("Tapline cannot listen on %s port %s", listen_addr, listen_port));
	}

# Before Zeek's own message, which says what is missing but not what to load.
@ifdef ( Cluster::CLUSTER_BACKEND_NONE )
event zeek_init() &priority=10
	{
	if ( Cluster::is_enabled() && Cluster::backend == Cluster::CLUSTER_BACKEND_NONE )
		Reporter::fatal("Tapline needs a cluster backend, and this Zeek has none by default: load " +
		    "frameworks/cluster/backend/zeromq on every node, before Tapline");
	}
@endif

event zeek_init()
	{
	if ( shards == 0 )
		Reporter::fatal("Tapline::shards must be at least 1, not 0");
	if ( shard_by != "orig" && shard_by != "resp" && shard_by != "local" )
		Reporter::fatal(fmt("Tapline::shard_by must be \"orig\", \"resp\" or \"local\", not \"%s\"", shard_by));
	if ( (tls_cert_file == "") != (tls_key_file == "") )
		Reporter::fatal("Tapline::tls_cert_file and Tapline::tls_key_file go together: set both or neither");
	if ( tls_client_ca_file != "" && tls_cert_file == "" )
		Reporter::fatal("Tapline::tls_client_ca_file needs Tapline::tls_cert_file and Tapline::tls_key_file");
	if ( sensor_name == "" )
		sensor_name = gethostname();
	if ( Cluster::is_enabled() )
		sensor_name = fmt("%s/%s", sensor_name, Cluster::node);
	if ( is_serving() && listen_port != 0/tcp )
		open_server();
	}
