##! Notices on verdicts, by site policy. Nothing is raised until labels are named.

@load base/frameworks/notice
@load ./verdicts
@load ./trace_verdicts

module Tapline;

export {
	redef enum Notice::Type += {
		## A flow got one of the labels in :zeek:id:`Tapline::notice_labels`.
		Verdict_Notice,
		## A trace got one of the labels in :zeek:id:`Tapline::notice_trace_labels`.
		Trace_Notice,
		## A model of malicious kinds calls a trace suspicious; see :zeek:id:`Tapline::notice_suspicious`.
		Suspicious_Trace,
	};

	## Labels that raise a notice; "unknown" stands for verdicts without a label. Empty: no notices.
	option notice_labels: set[string] = {};

	## Labels of traces that raise a notice, in the same way, of any model, or as "model/label" of one. Empty: no notices.
	option notice_trace_labels: set[string] = {};

	## Whether traces that a model calls suspicious raise a notice, early verdicts too: those are given only where the
	## suspicion is enough already. Confidence, which is that of a single label, does not matter.
	option notice_suspicious = F;

	## Least confidence; verdicts without a label are not held to it.
	option notice_min_confidence: double = 0.9;

	## Networks of which one endpoint of a flow must be a member; empty: any. Traces are not held to it.
	option notice_networks: set[subnet] = {};

	## Whether early verdicts on flows raise notices too.
	option notice_early = T;

	## Whether early verdicts on traces do. A window that goes on often ends with another verdict than it began with.
	option notice_trace_early = F;

	## Time for which the same label between the same two hosts, or of the same subject by the same model, raises no
	## second notice; of a subject's suspicion likewise.
	option notice_suppress_for: interval = 1hr;
}

# Whether a verdict is sure enough for a notice.
function is_sure(unknown: bool, confidence: double): bool
	{
	return unknown || confidence >= notice_min_confidence;
	}

function is_notable(rec: Info): bool
	{
	if ( ! (rec$final || notice_early) || rec$label !in notice_labels )
		return F;
	if ( ! is_sure(rec$unknown, rec$confidence) )
		return F;
	return |notice_networks| == 0 || rec$id$orig_h in notice_networks || rec$id$resp_h in notice_networks;
	}

hook verdict_logged(rec: Info)
	{
	if ( |notice_labels| == 0 || ! is_notable(rec) )
		return;
	NOTICE(Notice::Info($note=Verdict_Notice, $id=rec$id, $uid=rec$uid,
	    $msg=fmt("%s talked to %s: %s", rec$id$orig_h, rec$id$resp_h, rec$label),
	    $sub=fmt("confidence %.3f, model %s %s", rec$confidence, rec$model, rec$model_version),
	    $identifier=cat(rec$id$orig_h, "-", rec$id$resp_h, "-", rec$label), $suppress_for=notice_suppress_for));
	}

# A notice on a trace: of its subject, and of the flow that the model looked at most.
function trace_notice(rec: TraceInfo, note: Notice::Type, msg: string, sub: string, identifier: string)
	{
	local n = Notice::Info($note=note, $msg=msg, $sub=sub, $identifier=identifier, $suppress_for=notice_suppress_for);
	if ( is_valid_ip(rec$subject) )
		n$src = to_addr(rec$subject);
	if ( |rec$top_uids| > 0 )
		n$uid = rec$top_uids[0];
	NOTICE(n);
	}

hook trace_verdict_logged(rec: TraceInfo)
	{
	if ( ! (rec$final || notice_trace_early) || ! is_sure(rec$unknown, rec$confidence) )
		return;
	if ( rec$label !in notice_trace_labels && fmt("%s/%s", rec$model, rec$label) !in notice_trace_labels )
		return;
	trace_notice(rec, Trace_Notice, fmt("%s behaves like %s, says %s", rec$subject, rec$label, rec$model),
	    fmt("confidence %.3f over %d flows, model %s %s", rec$confidence, rec$flows, rec$model, rec$model_version),
	    cat(rec$subject, "-", rec$model, "-", rec$label));
	}

hook trace_verdict_logged(rec: TraceInfo)
	{
	if ( ! notice_suspicious || ! rec?$suspicious || ! rec$suspicious )
		return;
	local label = rec$unknown ? fmt("nearest %s", rec$nearest) : rec$label;
	trace_notice(rec, Suspicious_Trace, fmt("%s is suspicious, says %s: %s", rec$subject, rec$model, label),
	    fmt("suspicion %.3f over %d flows, model %s %s", rec?$suspicion ? rec$suspicion : 1.0, rec$flows, rec$model,
	    rec$model_version), cat(rec$subject, "-", rec$model));
	}
