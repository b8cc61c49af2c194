##! Notices on verdicts, by site policy. Nothing is raised until labels are named.

@load base/frameworks/notice
@load ./verdicts

module Tapline;

export {
	redef enum Notice::Type += {
		## A flow got one of the labels in :zeek:id:`Tapline::notice_labels`.
		Verdict_Notice,
	};

	## Labels that raise a notice; "unknown" stands for verdicts without a label. Empty: no notices.
	option notice_labels: set[string] = {};

	## Least confidence; verdicts without a label are not held to it.
	option notice_min_confidence: double = 0.9;

	## Networks of which one endpoint must be a member; empty: any.
	option notice_networks: set[subnet] = {};

	## Whether early verdicts raise notices too.
	option notice_early = T;

	## Time for which the same label between the same two hosts raises no second notice.
	option notice_suppress_for: interval = 1hr;
}

function is_notable(rec: Info): bool
	{
	if ( (rec$unknown ? "unknown" : rec$label) !in notice_labels )
		return F;
	if ( ! rec$unknown && rec$confidence < notice_min_confidence )
		return F;
	if ( ! rec$final && ! notice_early )
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
