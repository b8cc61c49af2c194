##! Verdicts in one string, version 2 of :zeek:see:`Tapline::verdicts`, which costs Zeek a part of it. Services send it where a
##! sensor says that it takes it.

@load ./stats
@load ./verdicts

module Tapline;

export {
	## Version of a batch of verdicts in lines.
	const lines_version = 2;

	## A batch of verdicts, numbered and acknowledged as :zeek:see:`Tapline::verdicts` is. The README of the package has the
	## layout of the lines.
	global verdict_lines: event(version: count, batch: count, service: string, lines: string);

	## Says which version of verdicts on flows the sensor takes at most.
	global takes_verdicts: event(version: count, sensor: string, verdicts: count);
}

# Fields of a line.
const line_fields = 13;

@ifdef ( Tapline::native_infos )
function infos_of_lines(lines: string, service: string): Infos
	{
	return native_infos(lines, service) as Infos;
	}
@else
# A line that is none, or has what cannot be a flow's port, is left out.
function infos_of_lines(lines: string, service: string): Infos
	{
	local infos: Infos = vector();
	for ( _, line in split_string(lines, /;/) )
		{
		local f = split_string(line, /\|/);
		if ( |f| != line_fields || ! is_valid_ip(f[2]) || ! is_valid_ip(f[4]) )
			next;
		local orig_p = to_count(f[3]);
		local resp_p = to_count(f[5]);
		if ( orig_p > 65535 || resp_p > 65535 )
			next;
		local transport = transport_of(f[6]);
		local is_unknown = f[9] == "T";
		infos += Info($ts=network_time(), $uid=f[0], $community_id=f[1], $id=conn_id($orig_h=to_addr(f[2]),
		    $orig_p=count_to_port(orig_p, transport), $resp_h=to_addr(f[4]), $resp_p=count_to_port(resp_p, transport)),
		    $proto=f[6], $label=label_of(f[7], is_unknown), $nearest=f[7], $confidence=to_double(f[8]), $unknown=is_unknown,
		    $final=f[10] == "T", $model=f[11], $model_version=f[12], $service=service);
		}
	return infos;
	}
@endif

event verdict_lines(version: count, batch: count, service: string, lines: string) &is_used
	{
	if ( ! speaks(version, lines_version) || ! can_log() )
		return;
	if ( ! is_new_batch(service, batch) || settle(service, batch, log_infos(infos_of_lines(lines, service))) )
		acknowledge(service, batch);
	}

function say_what_is_taken()
	{
	if ( is_serving() )
		Cluster::publish(stats_topic, Tapline::takes_verdicts, format_version, sensor_name, lines_version);
	}

event Cluster::websocket_client_added(endpoint: Cluster::EndpointInfo, subscriptions: string_vec)
	{
	say_what_is_taken();
	}

# Clients that connect otherwise learn of it here.
event stats_due()
	{
	say_what_is_taken();
	}
