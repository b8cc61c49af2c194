##! Publishing flows on the bus, and the WebSocket server through which services reach it.

@load base/frameworks/cluster
@load base/utils/site
@load ./main
@load ./server_names
@ifndef ( Tapline::native_take )
@load ./batch
@endif

@ifdef ( Cluster::CLUSTER_BACKEND_NONE )
@if ( Cluster::backend == Cluster::CLUSTER_BACKEND_NONE && ! Cluster::is_enabled() && ! Supervisor::is_supervisor() )
@load ./exchange
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
	option publish_delay: interval = 200msec;

	## Flows that are published together at most.
	const publish_together = 64;

	## Version of a batch of flows. A reader refuses versions it does not know.
	const batch_version = 2;

	## Flows of one shard, packed as the README of the package says: they are numbered from `seq` on.
	global flows: event(version: count, sensor: string, seq: count, flows: count, packed: string);

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

function subject(id: conn_id): addr
	{
	if ( shard_by == "orig" )
		return id$orig_h;
	if ( shard_by == "resp" )
		return id$resp_h;
	return Site::is_local_addr(id$resp_h) && ! Site::is_local_addr(id$orig_h) ? id$resp_h : id$orig_h;
	}

function shard_of(id: conn_id): count &is_used
	{
	return shards == 1 ? 0 : fnv1a32(subject(id)) % shards;
	}

function topic_of(shard: count): string
	{
	local number = cat(shard);
	while ( |number| < |cat(shards - 1)| )
		number = "0" + number;
	return flows_topic + number;
	}

# A service that takes some shards only must see holes in those alone, so each shard counts by itself.
global shard_seqs: table[count] of count &default=0;

# Flows wait to go out together: one event for many costs less, and wakes the threads of the bus once. Names of their servers,
# by uid.
global waiting_names: table[string] of string;

# Whether the end of `publish_delay` is awaited.
global publication_due = F;

# Runs before flows go out together.
global publishing: hook(names: table[string] of string);

function publish_shard(shard: count)
	{
	local batch = take(shard);
	Cluster::publish(topic_of(shard), Tapline::flows, batch_version, sensor_name, shard_seqs[shard] + 1, batch$flows,
	    batch$packed);
	shard_seqs[shard] += batch$flows;
	}

function tell_names()
	{
	if ( |waiting_names| == 0 )
		return;
	hook publishing(waiting_names);
	waiting_names = table();
	}

function publish_waiting()
	{
	tell_names();
	for ( _, shard in waiting_shards() )
		publish_shard(shard);
	}

event publish_due()
	{
	publication_due = F;
	publish_waiting();
	}

# So many flows of the shard wait now. The plugin asks at the first and at the last that there is room for.
function batch_grew(shard: count, flows: count) &is_used
	{
	if ( flows >= publish_together || publish_delay == 0sec )
		{
		tell_names();
		publish_shard(shard);
		}
	else if ( ! publication_due )
		{
		publication_due = T;
		schedule publish_delay { publish_due() };
		}
	}

@ifndef ( Tapline::native_take )
hook deliver(c: connection, final: bool)
	{
	local name = server_name(c);
	if ( name != "" )
		waiting_names[c$uid] = name;
	local shard = shards == 1 ? 0 : shard_of(c$id);
	batch_grew(shard, pack(c, final, shard, name));
	}
@endif

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

# With ZeroMQ each client of the WebSocket server has a connection of its own to the bus, which listens for logs where the node
# does, and cannot where the node does already: clients of a node that writes the cluster's logs wait for ever.
@ifdef ( Cluster::Backend::ZeroMQ::listen_log_endpoint )
event zeek_init() &priority=10
	{
	if ( is_serving() && listen_port != 0/tcp && Cluster::Backend::ZeroMQ::listen_log_endpoint != "" )
		Reporter::fatal(fmt("Tapline cannot serve on the node that writes the cluster's logs with ZeroMQ: add a " +
		    "logger to the cluster, or name another node than \"%s\" in Tapline::serving_node", Cluster::node));
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
