##! Verdicts on traces coming back from services: acknowledged batch by batch, logged once in tapline_trace.log, offered
##! to site policy. A trace is the flows of one subject in one window of time.

@load ./verdicts

module Tapline;

export {
	redef enum Log::ID += { TRACE_LOG };

	global log_policy_trace: Log::PolicyHook;

	## One verdict on a trace, as far as every service gives it. The order of the fields is the contract: the bus sends
	## records by position. Times are microseconds since the epoch. Fields that come later are put behind these: Zeek
	## takes a record that is longer than the one it knows.
	type TraceVerdict: record {
		subject: string;
		subject_kind: string;
		start_us: count;
		end_us: count;
		flows: count;
		cut: count;
		nearest: string;
		confidence: double;
		unknown: bool;
		final: bool;
		top_uids: vector of string;
		top_shares: vector of double;
		model: string;
		model_version: string;
	};
	type TraceVerdicts: vector of TraceVerdict;

	## The same with what a later service says besides: the probability that the trace is of any malicious kind that the
	## model knows, and whether that is enough to call it suspicious. Both are unset where the model does not tell.
	type SuspectedTrace: record {
		subject: string;
		subject_kind: string;
		start_us: count;
		end_us: count;
		flows: count;
		cut: count;
		nearest: string;
		confidence: double;
		unknown: bool;
		final: bool;
		top_uids: vector of string;
		top_shares: vector of double;
		model: string;
		model_version: string;
		suspicion: double &optional;
		suspicious: bool &optional;
	};
	type SuspectedTraces: vector of SuspectedTrace;

	## The columns of tapline_trace.log.
	type TraceInfo: record {
		## When the verdict arrived.
		ts: time &log;
		## Whose flows they are: an address, two addresses, or a MAC address; and which of these.
		subject: string &log;
		subject_kind: string &log;
		window_start: time &log;
		window_end: time &log;
		## Flows that were scored, and older ones of the window that were not, because there were too many.
		flows: count &log;
		cut: count &log;
		## As of :zeek:type:`Tapline::Info`.
		label: string &log;
		nearest: string &log;
		confidence: double &log;
		unknown: bool &log;
		## F: an early verdict, on a window that was still open.
		final: bool &log;
		## The flows that the model looked at most, and their shares, which add up to at most 1. They went together
		## with the label; that does not make them its cause.
		top_uids: vector of string &log;
		top_shares: vector of double &log;
		model: string &log;
		model_version: string &log;
		## The service that gave the verdict.
		service: string &log;
		## The probability that the trace is of any malicious kind that the model knows, and whether the model calls it
		## suspicious for that, also where no label is sure. Unset where the model does not tell.
		suspicion: double &log &optional;
		suspicious: bool &log &optional;
	};

	## A batch of verdicts on traces; numbered and acknowledged as :zeek:see:`Tapline::verdicts` is. They are
	## :zeek:type:`Tapline::SuspectedTraces`, or of an earlier service :zeek:type:`Tapline::TraceVerdicts`.
	global trace_verdicts: event(version: count, batch: count, service: string, verdicts: any);

	## Site policy on each verdict before it is logged and noticed: a body may change the record, or break to drop it.
	global trace_verdict_policy: hook(rec: TraceInfo);

	## Runs for each verdict that was logged.
	global trace_verdict_logged: hook(rec: TraceInfo);
}

function time_of(time_us: count): time
	{
	return double_to_time(time_us / 1000000.0);
	}

function to_trace_info(v: TraceVerdict, service: string): TraceInfo
	{
	return TraceInfo($ts=network_time(), $subject=v$subject, $subject_kind=v$subject_kind,
	    $window_start=time_of(v$start_us), $window_end=time_of(v$end_us), $flows=v$flows, $cut=v$cut,
	    $label=label_of(v$nearest, v$unknown), $nearest=v$nearest, $confidence=v$confidence, $unknown=v$unknown,
	    $final=v$final, $top_uids=v$top_uids, $top_shares=v$top_shares, $model=v$model, $model_version=v$model_version, $service=service);
	}

hook log_policy_trace(rec: any, id: Log::ID, filter: Log::Filter) &priority=-100
	{
	line_passed = T;
	}

# The lines of a batch, none if it is of a form that this sensor does not know.
function to_trace_infos(given: any, service: string): vector of TraceInfo
	{
	local found: vector of TraceInfo = vector();
	if ( given is SuspectedTraces )
		{
		local suspected = given as SuspectedTraces;
		for ( _, s in suspected )
			{
			local rec = to_trace_info(TraceVerdict($subject=s$subject, $subject_kind=s$subject_kind, $start_us=s$start_us,
			    $end_us=s$end_us, $flows=s$flows, $cut=s$cut, $nearest=s$nearest, $confidence=s$confidence,
			    $unknown=s$unknown, $final=s$final, $top_uids=s$top_uids, $top_shares=s$top_shares, $model=s$model,
			    $model_version=s$model_version), service);
			if ( s?$suspicion )
				rec$suspicion = s$suspicion;
			if ( s?$suspicious )
				rec$suspicious = s$suspicious;
			found += rec;
			}
		}
	else if ( given is TraceVerdicts )
		{
		local earlier = given as TraceVerdicts;
		for ( _, v in earlier )
			found += to_trace_info(v, service);
		}
	return found;
	}

# Logs a batch, but for what policy leaves out.
function log_trace_verdicts(given: vector of TraceInfo): Logged
	{
	local result = Logged();
	for ( _, rec in given )
		{
		if ( ! hook trace_verdict_policy(rec) )
			next;
		line_passed = F;
		if ( ! Log::write(TRACE_LOG, rec) )
			{
			result$refused = T;
			break;
			}
		if ( line_passed )
			++result$lines;
		hook trace_verdict_logged(rec);
		}
	return result;
	}

event trace_verdicts(version: count, batch: count, service: string, verdicts: any) &is_used
	{
	if ( ! speaks(version) || ! can_log() )
		return;
	local lines = to_trace_infos(verdicts, service);
	if ( |lines| == 0 )
		{
		Reporter::warning("Tapline verdicts on traces refused: not of a form that this sensor reads; install the package of the service's release");
		return;
		}
	if ( ! is_new_batch(service, batch) || settle(service, batch, log_trace_verdicts(lines)) )
		acknowledge(service, batch);
	}

event zeek_init() &priority=5
	{
	Log::create_stream(TRACE_LOG, [$columns=TraceInfo, $path="tapline_trace", $policy=log_policy_trace]);
	}
