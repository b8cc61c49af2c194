// The value in which a connection's script record holds its flow, which thereby lives as long as the record: Zeek's
// connection itself is gone when its last event runs.

#pragma once

#include <zeek/IPAddr.h>
#include <zeek/OpaqueVal.h>

#include "flow.h"

namespace zeek {
class Connection;
}

namespace tapline {

class Kept final : public zeek::OpaqueVal {
public:
    // Of a connection that is observed, or (null) of one that is left out.
    explicit Kept(zeek::Connection* conn);

    // Empty, as for a connection that is left out: what becomes of a copy.
    Kept() : Kept(nullptr) {}

    // The connection, null once it is done; its endpoints are what they were when it began.
    zeek::Connection* conn = nullptr;
    bool is_observed;
    bool is_tunneled = false;

    // Who was the originator when the connection began: sides of the content count from there.
    bool BeganWith(const zeek::IPAddr& address, uint16_t port) const {
        return originator_port == port && originator == address;
    }

    // Its deadline for an early publication has come; the publication was made; Zeek removed the connection.
    bool is_deadline_over = false;
    bool is_early = false;
    bool is_closed = false;

    // What the early publication covers: at a deadline, what there was before the packet that moved the clock.
    Extent early;

    // Its place in the queue of deadlines, 0 for none.
    uint64_t deadline = 0;

    Flow flow;

protected:
    zeek::ValPtr DoClone(CloneState* state) override;

    DECLARE_OPAQUE_VALUE_DATA(Kept)

private:
    zeek::IPAddr originator;
    uint16_t originator_port = 0; // network byte order, as Zeek's connection has it
};

using KeptPtr = zeek::IntrusivePtr<Kept>;

// What a connection's record keeps; null where there is nothing.
Kept* kept_of(const zeek::RecordVal& connection);

// The same, but what is empty instead of null.
const Kept& kept_or_nothing(const zeek::RecordVal& connection);

// Puts it there.
void keep(zeek::RecordVal& connection, KeptPtr kept);

// Finds the record's field, once the scripts are read. False where they do not declare it.
bool find_kept_field();

} // namespace tapline
