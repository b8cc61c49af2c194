##! Whether what is given to the log framework here gets into a log: in a cluster another node writes it, and a node that is
##! down, or runs without this package, drops it without a word. So each node that writes logs tells the serving one.

@load base/frameworks/cluster
@load ./main
@load ./bus

module Tapline;

export {
	## A node that writes the cluster's logs has this package's log streams.
	global log_writer_up: event(node: string);

	## Whether verdicts can be logged now.
	global can_log: function(): bool;
}

global log_writers: set[string];

function can_log(): bool
	{
	if ( ! Cluster::is_enabled() || Log::enable_local_logging )
		return T;
	local running = Cluster::get_active_node_count(Cluster::manager_is_logger ? Cluster::MANAGER : Cluster::LOGGER);
	return running > 0 && |log_writers| >= running;
	}

event log_writer_up(node: string) &is_used
	{
	add log_writers[node];
	}

event Cluster::node_up(name: string, id: string)
	{
	if ( Log::enable_local_logging && serves(name) )
		Cluster::publish(Cluster::nodeid_topic(id), Tapline::log_writer_up, Cluster::node);
	}

event Cluster::node_down(name: string, id: string)
	{
	delete log_writers[name];
	}
