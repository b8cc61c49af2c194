#include "kept.h"

#include <zeek/Conn.h>
#include <zeek/broker/Data.h>

namespace tapline {

namespace {

int kept_field = -1;

const zeek::OpaqueTypePtr& kept_type() {
    static const auto type = zeek::make_intrusive<zeek::OpaqueType>("tapline_flow");
    return type;
}

} // namespace

Kept::Kept(zeek::Connection* conn) : OpaqueVal(kept_type()), conn(conn), is_observed(conn != nullptr) {
    if ( ! conn )
        return;
    originator = conn->OrigAddr();
    originator_port = conn->OrigPort();
    flow.is_same_host = conn->OrigAddr() == conn->RespAddr();
}

// Copies and what goes to other nodes are of no use there, but must not fail.
zeek::ValPtr Kept::DoClone(CloneState* state) { return state->NewClone(this, zeek::make_intrusive<Kept>()); }

std::optional<zeek::BrokerData> Kept::DoSerializeData() const { return zeek::BrokerData{}; }

bool Kept::DoUnserializeData(zeek::BrokerDataView data) { return true; }

IMPLEMENT_OPAQUE_VALUE(Kept)

bool find_kept_field() {
    kept_field = zeek::id::connection->FieldOffset("tapline_flow");
    return kept_field >= 0;
}

Kept* kept_of(const zeek::RecordVal& connection) {
    if ( kept_field < 0 || ! connection.HasRawField(kept_field) )
        return nullptr;
    // Alive as long as the record.
    return static_cast<Kept*>(connection.GetField(kept_field).get());
}

const Kept& kept_or_nothing(const zeek::RecordVal& connection) {
    static const auto* nothing = new Kept;
    const Kept* kept = kept_of(connection);
    return kept ? *kept : *nothing;
}

void keep(zeek::RecordVal& connection, KeptPtr kept) {
    if ( ! connection.HasRawField(kept_field) )
        connection.Assign(kept_field, std::move(kept));
}

} // namespace tapline
