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
	};

	## Labels that raise a notice; "unknown" stands for verdicts without a label. Empty: no notices.
	option notice_labels: set[string] = {};

	## Labels of traces that raise a notice, in the same way. Empty: no notices.
	option notice_trace_labels: set[string] = {};

	## Least confidence; verdicts without a label are not held to it.
	option notice_min_confidence: double = 0.9;

	## Networks of which one endpoint of a flow must be a member; empty: any. Traces are not held to it.
	option notice_networks: set[subnet] = {};

	## Whether early verdicts on flows raise notices too.
	option notice_early = T;

	## Whether early verdicts on traces do. A window that goes on often ends with another verdict than it began with.
	option notice_trace_early = F;

	## Time for which the same label between the same two hosts, or of the same subject, raises no second notice.
	option notice_suppress_for: interval = 1hr;
}

# Whether a verdict is sure enough for a notice, and has one of the labels.
function is_wanted(labels: set[string], label: string, unknown: bool, confidence: double): bool
	{
	if ( (unknown ? "unknown" : label) !in labels )
		return F;
	return unknown || confidence >= notice_min_confidence;
	}

function is_notable(rec: Info): bool
	{
	if ( ! (rec$final || notice_early) || ! is_wanted(notice_labels, rec$label, rec$unknown, rec$confidence) )
		return F;
	return |notice_networks| == 0 || rec$id$orig_h in notice_networks || rec$id$resp_h in notice_networks;
	}

hook verdict_logged(rec: Info)
	{
	if ( |notice_labels| == 0 || ! is_notable(rec) )
		return;
	local label = rec$unknown ? "unknown" : rec$label;
	NOTICE(Notice::Info($note=Verdict_Notice, $id=rec$id, $uid=rec$uid,
	    $msg=fmt("%s talked to %s: %s", rec$id$orig_h, rec$id$resp_h, label),
	    $sub=fmt("confidence %.3f, model %s %s", rec$confidence, rec$model, rec$model_version),
	    $identifier=cat(rec$id$orig_h, "-", rec$id$resp_h, "-", label), $suppress_for=notice_suppress_for));
	}

hook trace_verdict_logged(rec: TraceInfo)
	{
	if ( ! (rec$final || notice_trace_early) )
		return;
	if ( ! is_wanted(notice_trace_labels, rec$label, rec$unknown, rec$confidence) )
		return;
	local label = rec$unknown ? "unknown" : rec$label;
	local n = Notice::Info($note=Trace_Notice, $msg=fmt("%s behaves like %s", rec$subject, label),
	    $sub=fmt("confidence %.3f over %d flows, model %s %s", rec$confidence, rec$flows, rec$model, rec$model_version),
	    $identifier=cat(rec$subject, "-", label), $suppress_for=notice_suppress_for);
	if ( is_valid_ip(rec$subject) )
		n$src = to_addr(rec$subject);
	if ( |rec$top_uids| > 0 )
		n$uid = rec$top_uids[0];
	NOTICE(n);
	}
