##! Verdicts coming back from services: acknowledged batch by batch, logged once in tapline.log, offered to site policy.

@load ./main
@load ./bus
@load ./known_names
@load ./log_writers

module Tapline;

export {
	redef enum Log::ID += { LOG };

	global log_policy: Log::PolicyHook;

	## Topics of verdicts, and of the acknowledgements that answer them.
	const verdicts_topic = "tapline/verdicts" &redef;
	const acks_topic = "tapline/acks" &redef;

	## One verdict. The order of the fields is the contract: the bus sends records by position.
	type Verdict: record {
		uid: string;
		community_id: string;
		orig_h: addr;
		orig_p: count;
		resp_h: addr;
		resp_p: count;
		proto: string;
		## The nearest label that the model knows, also where it says that this is nothing it was trained on.
		nearest: string;
		confidence: double;
		unknown: bool;
		final: bool;
		model: string;
		model_version: string;
	};
	type Verdicts: vector of Verdict;

	## The columns of tapline.log.
	type Info: record {
		## When the verdict arrived.
		ts: time &log;
		uid: string &log;
		id: conn_id &log;
		proto: string &log;
		community_id: string &log;
		## What the verdict says: `unknown` where the model says that this is nothing it was trained on.
		label: string &log;
		## The nearest label that the model knows, and its confidence in that.
		nearest: string &log;
		confidence: double &log;
		unknown: bool &log;
		## F: an early verdict, on a flow that was still alive.
		final: bool &log;
		model: string &log;
		model_version: string &log;
		## The service that gave the verdict.
		service: string &log;
		## The name of the server that the client asked for, as Zeek knows it: evidence that no model reads.
		server_name: string &log &optional;
	};
	type Infos: vector of Info;

	## A batch of verdicts. `service` names one run of a service: batches count up within it, and a batch sent again
	## carries its old number.
	global verdicts: event(version: count, batch: count, service: string, verdicts: Verdicts);

	## Answers a batch once its verdicts are logged, also one seen before: `logged` is the number of them that are in
	## the log; site policy may keep others out. What cannot be logged now is not answered, and comes again.
	global verdicts_ack: event(version: count, service: string, batch: count, logged: count);

	## Site policy on each verdict before it is logged and noticed: a body may change the record, or break to drop it.
	global verdict_policy: hook(rec: Info);

	## Runs for each verdict that was logged.
	global verdict_logged: hook(rec: Info);

	## Batches remembered per service run, and service runs remembered, to tell batches that are sent again.
	const batches_remembered = 1024 &redef;
	const services_remembered = 64 &redef;
}

# What became of a batch: lines that are in the log, and whether the log framework refused one.
type Logged: record {
	lines: count &default=0;
	refused: bool &default=F;
};

# The batches seen of one service run, by number, with what each had logged.
type Seen: record {
	logged: table[count] of count &default=table();
	highest: count &default=0;
};

global seen_services: table[string] of Seen &ordered;

function transport_of(proto: string): transport_proto
	{
	switch ( proto )
		{
		case "tcp": return tcp;
		case "udp": return udp;
		case "icmp": return icmp;
		default: return unknown_transport;
		}
	}

# What a verdict says.
function label_of(nearest: string, is_unknown: bool): string
	{
	return is_unknown ? "unknown" : nearest;
	}

function to_info(v: Verdict, service: string): Info
	{
	local transport = transport_of(v$proto);
	local id = conn_id($orig_h=v$orig_h, $orig_p=count_to_port(v$orig_p, transport), $resp_h=v$resp_h,
	    $resp_p=count_to_port(v$resp_p, transport));
	return Info($ts=network_time(), $uid=v$uid, $id=id, $proto=v$proto, $community_id=v$community_id,
	    $label=label_of(v$nearest, v$unknown), $nearest=v$nearest, $confidence=v$confidence, $unknown=v$unknown,
	    $final=v$final, $model=v$model, $model_version=v$model_version, $service=service);
	}

# The lines of verdicts. What cannot be a flow's port is left out.
function to_infos(given: Verdicts, service: string): Infos
	{
	local infos: Infos = vector();
	for ( _, v in given )
		if ( v$orig_p <= 65535 && v$resp_p <= 65535 )
			infos += to_info(v, service);
	return infos;
	}

# Whether the line that is being written passed all that may keep it out.
global line_passed = F;

hook log_policy(rec: any, id: Log::ID, filter: Log::Filter) &priority=-100
	{
	line_passed = T;
	}

# Logs a batch. Policy may leave lines out.
function log_infos(infos: Infos): Logged
	{
	local result = Logged();
	for ( _, rec in infos )
		{
		local name = known_name(rec$uid);
		if ( name != "" )
			rec$server_name = name;
		if ( ! hook verdict_policy(rec) )
			next;
		line_passed = F;
		if ( ! Log::write(LOG, rec) )
			{
			result$refused = T;
			break;
			}
		if ( line_passed )
			++result$lines;
		hook verdict_logged(rec);
		}
	return result;
	}

function seen_of(service: string): Seen
	{
	if ( service !in seen_services )
		{
		if ( |seen_services| >= services_remembered )
			for ( oldest in seen_services )
				{
				delete seen_services[oldest];
				break;
				}
		seen_services[service] = Seen();
		}
	return seen_services[service];
	}

# Forget the batches that are too far behind the highest one.
function remember(seen: Seen, batch: count, logged: count)
	{
	seen$logged[batch] = logged;
	if ( batch > seen$highest )
		seen$highest = batch;
	if ( |seen$logged| <= batches_remembered )
		return;
	local too_old: vector of count = vector();
	for ( b in seen$logged )
		if ( b + batches_remembered <= seen$highest )
			too_old += b;
	for ( _, b in too_old )
		delete seen$logged[b];
	}

# Whether a batch is to be logged: it was not seen before, nor is it so old that nobody knows.
function is_new_batch(service: string, batch: count): bool
	{
	local seen = seen_of(service);
	return batch !in seen$logged && batch + batches_remembered > seen$highest;
	}

# Remembers what became of a batch; F if the log framework refused it, so that it must come again.
function settle(service: string, batch: count, result: Logged): bool
	{
	if ( result$refused )
		{
		Reporter::warning("Tapline verdicts are not acknowledged: Zeek's log framework refuses them");
		return F;
		}
	remember(seen_of(service), batch, result$lines);
	return T;
	}

function acknowledge(service: string, batch: count)
	{
	local seen = seen_of(service);
	local logged = batch in seen$logged ? seen$logged[batch] : 0;
	Cluster::publish(acks_topic, Tapline::verdicts_ack, format_version, service, batch, logged);
	}

# Whether verdicts of a version can be read by what reads another.
function speaks(version: count, read_version: count &default=format_version): bool
	{
	if ( version == read_version )
		return T;
	Reporter::warning(fmt("Tapline verdicts of version %d refused: this sensor reads version %d", version, read_version));
	return F;
	}

event verdicts(version: count, batch: count, service: string, verdicts: Verdicts) &is_used
	{
	if ( ! speaks(version) || ! can_log() )
		return;
	if ( ! is_new_batch(service, batch) || settle(service, batch, log_infos(to_infos(verdicts, service))) )
		acknowledge(service, batch);
	}

# On every node: in a cluster, one takes the verdicts and another writes the log.
event zeek_init() &priority=5
	{
	Log::create_stream(LOG, [$columns=Info, $path="tapline", $policy=log_policy]);
	if ( is_serving() )
		Cluster::subscribe(verdicts_topic);
	}
