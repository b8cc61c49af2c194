// What a connection's script record tells beside its flow: what conn.log has of it.

#pragma once

#include <zeek/IPAddr.h>
#include <zeek/Val.h>

#include <string>
#include <string_view>

namespace tapline {

// Of everything that is published.
struct ConnectionFacts {
    std::string_view uid; // as long as the record
    zeek::IPAddr orig_h, resp_h;
    uint16_t orig_p, resp_p;
    uint8_t protocol;
    uint64_t start_us, duration_us;
    uint64_t orig_pkts, resp_pkts, orig_ip_bytes, resp_ip_bytes;
    std::string service, conn_state;
};

// Finds the fields of the records, once the scripts are read.
void find_connection_fields();

ConnectionFacts connection_facts(const zeek::RecordVal& connection, bool is_final);

// Its four addresses and ports, as scripts have them.
zeek::RecordValPtr connection_id(const zeek::RecordVal& connection);

// The name of its server, null where scripts noted none.
zeek::StringValPtr noted_name(const zeek::RecordVal& connection);

// Whether the scripts may find a name that they have not noted.
bool may_have_name(const zeek::RecordVal& connection);

// Both sides of a TCP connection are done: Zeek removes it within seconds.
bool is_over(const zeek::RecordVal& connection);

} // namespace tapline
