##! For capture files: `zeek -r FILE zeek/scripts/offline.zeek` writes every flow to tapline_flow.log when it ends.
##! No bus, no socket, nothing early.

@load ./core
@load ./flow_log

module Tapline;

export {
	## F: write no log but those of this package.
	const other_logs = T &redef;
}

# Captures taken on the sending host have checksums that the network card would have filled in.
redef ignore_checksums = T;

redef Tapline::early_packets = 0;
redef Tapline::early_interval = 0sec;
redef Tapline::early_bytes = 0;

hook Log::log_stream_policy(rec: any, id: Log::ID)
	{
	if ( ! other_logs && ! starts_with(cat(id), "Tapline::") )
		break;
	}
