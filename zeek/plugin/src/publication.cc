#include "publication.h"

#include <zeek/Conn.h>
#include <zeek/Func.h>
#include <zeek/ID.h>
#include <zeek/RunState.h>

#include "batch.h"
#include "connection.h"
#include "kept.h"
#include "names.h"
#include "tap.h"

namespace tapline {

namespace {

// Fields of Tapline::Counters.
struct CounterFields {
    int seq, early, finals, unchanged, without_payload, filtered, cut, gaps;
} counter;

zeek::RecordValPtr counters;

// Hooks and functions of the scripts; the last two are the bus's.
struct Functions {
    zeek::FuncPtr deliver, ended, server_name, shard_of, batch_grew;
} functions;

zeek::detail::IDPtr waiting_names;
bool has_one_shard = true;
bool takes_verdicts = false;

void count(int field, uint64_t by = 1) {
    uint64_t before = counters->HasRawField(field) ? counters->GetFieldAs<zeek::CountVal>(field) : 0;
    counters->Assign(field, before + by);
}

// A function or hook of the scripts; null where there is none, or a hook has no body.
zeek::FuncPtr function(const char* name) {
    const auto& id = zeek::id::find(name);
    return id && id->GetVal() ? zeek::id::find_func(name) : nullptr;
}

bool has_bodies(const zeek::FuncPtr& hook) { return hook && hook->HasBodies(); }

// As Zeek knows it so far, empty where there is none.
zeek::StringValPtr server_name(const zeek::RecordValPtr& connection) {
    if ( auto name = noted_name(*connection) )
        return name;
    if ( ! may_have_name(*connection) )
        return zeek::val_mgr->EmptyString();
    auto name = functions.server_name->Invoke(connection);
    return name ? zeek::cast_intrusive<zeek::StringVal>(name) : zeek::val_mgr->EmptyString();
}

// To where verdicts are logged.
void tell_name(const ConnectionFacts& facts, const zeek::StringValPtr& name) {
    if ( takes_verdicts )
        return names.Remember(facts.uid, name->ToStdStringView());
    waiting_names->GetVal()->AsTableVal()->Assign(zeek::make_intrusive<zeek::StringVal>(facts.uid), name);
}

uint64_t shard_of(const zeek::RecordValPtr& connection) {
    if ( has_one_shard )
        return 0;
    auto shard = functions.shard_of->Invoke(connection_id(*connection));
    return shard ? shard->AsCount() : 0;
}

void publish(const zeek::RecordValPtr& connection, const Kept& kept, bool is_final) {
    count(counter.seq);
    count(is_final ? counter.finals : counter.early);
    if ( has_bodies(functions.deliver) )
        functions.deliver->Invoke(connection, zeek::val_mgr->Bool(is_final));
    if ( ! functions.batch_grew )
        return;
    ConnectionFacts facts = connection_facts(*connection, is_final);
    zeek::StringValPtr name = server_name(connection);
    if ( name->Len() > 0 )
        tell_name(facts, name);
    uint64_t shard = shard_of(connection);
    uint64_t flows = pack(shard, facts, kept, is_final, settings.options.heads, name->ToStdStringView());
    // In between there is nothing to decide.
    if ( flows == 1 || flows == max_batch_flows )
        functions.batch_grew->Invoke(zeek::val_mgr->Count(shard), zeek::val_mgr->Count(flows));
}

} // namespace

bool find_publication() {
    const auto& found = zeek::id::find("Tapline::counters");
    functions.server_name = function("Tapline::server_name");
    if ( ! found || ! found->GetVal() || ! functions.server_name )
        return false;
    counters = zeek::cast_intrusive<zeek::RecordVal>(found->GetVal());
    const auto& type = *counters->GetType<zeek::RecordType>();
    counter = {type.FieldOffset("seq"), type.FieldOffset("early"), type.FieldOffset("finals"),
               type.FieldOffset("unchanged"), type.FieldOffset("without_payload"), type.FieldOffset("filtered"),
               type.FieldOffset("cut"), type.FieldOffset("gaps")};
    functions.deliver = function("Tapline::deliver");
    functions.ended = function("Tapline::ended");
    functions.batch_grew = function("Tapline::batch_grew");
    if ( functions.batch_grew ) {
        functions.shard_of = zeek::id::find_func("Tapline::shard_of");
        waiting_names = zeek::id::find("Tapline::waiting_names");
        has_one_shard = zeek::id::find_val("Tapline::shards")->AsCount() == 1;
        names.most = zeek::id::find_val("Tapline::names_remembered")->AsCount();
        zeek::Args none;
        takes_verdicts = zeek::id::find_func("Tapline::is_serving")->Invoke(&none)->AsBool();
    }
    return true;
}

void publish_early(const zeek::RecordValPtr& connection) {
    Kept* kept = kept_of(*connection);
    if ( ! kept || ! kept->is_observed || kept->is_early || kept->is_closed || zeek::run_state::terminating )
        return;
    // Brings the record up to date.
    if ( kept->conn )
        kept->conn->GetVal();
    bool is_by_deadline = kept->is_deadline_over;
    kept->is_deadline_over = false;
    if ( is_by_deadline && is_over(*connection) )
        return;
    if ( ! is_by_deadline )
        kept->early = kept->flow.CurrentExtent();
    kept->flow.early_due = true;
    kept->is_early = true;
    publish(connection, *kept, false);
}

void publish_final(const zeek::RecordValPtr& connection) {
    Kept* kept = kept_of(*connection);
    if ( ! kept )
        return count(counter.without_payload);
    if ( ! kept->is_observed )
        return count(counter.filtered);
    kept->is_closed = true;
    const Flow& flow = kept->flow;
    if ( uint64_t gaps = flow.content[0].stopped_at_gap + flow.content[1].stopped_at_gap )
        count(counter.gaps, gaps);
    if ( flow.PayloadPackets() > max_payload_lengths )
        count(counter.cut);
    if ( flow.PayloadPackets() == 0 && ! settings.options.publish_without_payload )
        return count(counter.without_payload);
    if ( has_bodies(functions.ended) )
        functions.ended->Invoke(connection);
    if ( kept->is_early && flow.CurrentExtent() == kept->early )
        return count(counter.unchanged);
    publish(connection, *kept, true);
}

} // namespace tapline
