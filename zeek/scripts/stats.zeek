##! Counters on the bus: what became of the flows, and what the capture lost before Zeek saw it.

@load ./main
@load ./bus

module Tapline;

export {
	## Topic of counters and of the end marker.
	const stats_topic = "tapline/stats" &redef;

	## Time between two publications of the counters; 0sec: none.
	option stats_interval: interval = 10sec;

	## The counters of one Zeek process since its start; `loss_percent` alone covers the time since the last event.
	## It is the share of TCP acknowledgements for data that Zeek never saw, -1.0 where there were none to judge by.
	global stats: event(version: count, sensor: string, time_us: count, seq: count, early: count, finals: count,
	    unchanged: count, without_payload: count, filtered: count, gaps: count, cut: count, packets: count,
	    dropped: count, link: count, bytes: count, loss_percent: double);
}

global last_acks = 0;
global last_gaps = 0;

function loss_percent(): double
	{
	local g = get_gap_stats();
	local acks = g$ack_events - last_acks;
	local gaps = g$gap_events - last_gaps;
	last_acks = g$ack_events;
	last_gaps = g$gap_events;
	return acks == 0 ? -1.0 : 100.0 * gaps / acks;
	}

function publish_stats()
	{
	# Nothing numbered may come after the number that says how many there are.
	publish_waiting();
	local n = get_net_stats();
	local k = counters;
	Cluster::publish(stats_topic, Tapline::stats, format_version, sensor_name,
	    double_to_count(time_to_double(network_time()) * 1000000.0), k$seq, k$early, k$finals, k$unchanged, k$without_payload,
	    k$filtered, k$gaps, k$cut, n$pkts_recvd, n$pkts_dropped, n$pkts_link, n$bytes_recvd, loss_percent());
	}

# Only processes that see packets have anything to count.
function observes_packets(): bool
	{
	return reading_live_traffic() || reading_traces();
	}

event stats_due()
	{
	if ( zeek_is_terminating() )
		return;
	publish_stats();
	schedule stats_interval { stats_due() };
	}

event zeek_init() &priority=-5
	{
	if ( stats_interval > 0sec && observes_packets() )
		schedule stats_interval { stats_due() };
	}

event zeek_done()
	{
	if ( observes_packets() )
		publish_stats();
	}
