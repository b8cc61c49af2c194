#include "connection.h"

#include <netinet/in.h>
#include <zeek/Conn.h>
#include <zeek/Dict.h>
#include <zeek/ID.h>
#include <zeek/ZeekString.h>
#include <zeek/analyzer/protocol/tcp/TCP_Endpoint.h>

#include <cmath>

namespace tapline {

namespace {

// Positions of fields in their records.
struct Fields {
    int id, orig, resp, start_time, duration, service, uid, conn, server_name, http; // connection
    int orig_h, orig_p, resp_h, resp_p, proto;                            // conn_id
    int state, num_pkts, num_bytes_ip;                                    // endpoint
    int conn_state;                                                       // Conn::Info
} fields;

// As double_to_count() rounds.
uint64_t microseconds(double seconds) {
    double us = std::rint(seconds * 1000000.0);
    return us > 0.0 ? static_cast<uint64_t>(us) : 0;
}

uint64_t count_or_0(const zeek::RecordVal& record, int field) {
    return field >= 0 && record.HasRawField(field) ? record.GetFieldAs<zeek::CountVal>(field) : 0;
}

std::string lower_joined(const zeek::TableVal& set) {
    std::string joined;
    for ( const auto& entry : *set.AsTable() ) {
        if ( ! joined.empty() )
            joined += ',';
        // The key of a set of strings is the string's bytes.
        joined.append(entry.GetKey(), entry.key_size);
    }
    for ( char& c : joined )
        if ( c >= 'A' && c <= 'Z' )
            c += 'a' - 'A';
    return joined;
}

std::string_view text(const zeek::RecordVal& record, int field) {
    const zeek::String* value = record.GetFieldAs<zeek::StringVal>(field);
    return {reinterpret_cast<const char*>(value->Bytes()), static_cast<size_t>(value->Len())};
}

} // namespace

void find_connection_fields() {
    const auto& connection = zeek::id::connection;
    fields.id = connection->FieldOffset("id");
    fields.orig = connection->FieldOffset("orig");
    fields.resp = connection->FieldOffset("resp");
    fields.start_time = connection->FieldOffset("start_time");
    fields.duration = connection->FieldOffset("duration");
    fields.service = connection->FieldOffset("service");
    fields.uid = connection->FieldOffset("uid");
    fields.conn = connection->FieldOffset("conn");
    fields.server_name = connection->FieldOffset("tapline_server_name");
    fields.http = connection->FieldOffset("http");
    const auto& id = zeek::id::conn_id;
    fields.orig_h = id->FieldOffset("orig_h");
    fields.orig_p = id->FieldOffset("orig_p");
    fields.resp_h = id->FieldOffset("resp_h");
    fields.resp_p = id->FieldOffset("resp_p");
    fields.proto = id->FieldOffset("proto");
    const auto& endpoint = zeek::id::endpoint;
    fields.state = endpoint->FieldOffset("state");
    fields.num_pkts = endpoint->FieldOffset("num_pkts");
    fields.num_bytes_ip = endpoint->FieldOffset("num_bytes_ip");
    const auto& info = zeek::id::find_type<zeek::RecordType>("Conn::Info");
    fields.conn_state = info ? info->FieldOffset("conn_state") : -1;
}

ConnectionFacts connection_facts(const zeek::RecordVal& connection, bool is_final) {
    ConnectionFacts facts;
    const auto* id = connection.GetFieldAs<zeek::RecordVal>(fields.id);
    const auto* orig = connection.GetFieldAs<zeek::RecordVal>(fields.orig);
    const auto* resp = connection.GetFieldAs<zeek::RecordVal>(fields.resp);
    facts.uid = text(connection, fields.uid);
    facts.orig_h = id->GetFieldAs<zeek::AddrVal>(fields.orig_h);
    facts.resp_h = id->GetFieldAs<zeek::AddrVal>(fields.resp_h);
    facts.orig_p = id->GetFieldAs<zeek::PortVal>(fields.orig_p)->Port();
    facts.resp_p = id->GetFieldAs<zeek::PortVal>(fields.resp_p)->Port();
    facts.protocol = static_cast<uint8_t>(count_or_0(*id, fields.proto));
    facts.start_us = microseconds(connection.GetFieldAs<zeek::TimeVal>(fields.start_time));
    facts.duration_us = microseconds(connection.GetFieldAs<zeek::IntervalVal>(fields.duration));
    facts.orig_pkts = count_or_0(*orig, fields.num_pkts);
    facts.resp_pkts = count_or_0(*resp, fields.num_pkts);
    facts.orig_ip_bytes = count_or_0(*orig, fields.num_bytes_ip);
    facts.resp_ip_bytes = count_or_0(*resp, fields.num_bytes_ip);
    if ( connection.HasRawField(fields.service) )
        facts.service = lower_joined(*connection.GetField(fields.service)->AsTableVal());
    if ( is_final && fields.conn >= 0 && fields.conn_state >= 0 && connection.HasRawField(fields.conn) ) {
        const auto* info = connection.GetFieldAs<zeek::RecordVal>(fields.conn);
        if ( info->HasRawField(fields.conn_state) )
            facts.conn_state = text(*info, fields.conn_state);
    }
    return facts;
}

zeek::RecordValPtr connection_id(const zeek::RecordVal& connection) {
    return connection.GetField<zeek::RecordVal>(fields.id);
}

zeek::StringValPtr noted_name(const zeek::RecordVal& connection) {
    return fields.server_name >= 0 ? connection.GetField<zeek::StringVal>(fields.server_name) : nullptr;
}

bool may_have_name(const zeek::RecordVal& connection) {
    return fields.http >= 0 && connection.HasRawField(fields.http);
}

bool is_over(const zeek::RecordVal& connection) {
    using namespace zeek::analyzer::tcp;
    const auto* id = connection.GetFieldAs<zeek::RecordVal>(fields.id);
    if ( count_or_0(*id, fields.proto) != IPPROTO_TCP )
        return false;
    auto orig = count_or_0(*connection.GetFieldAs<zeek::RecordVal>(fields.orig), fields.state);
    auto resp = count_or_0(*connection.GetFieldAs<zeek::RecordVal>(fields.resp), fields.state);
    if ( orig == TCP_ENDPOINT_RESET || resp == TCP_ENDPOINT_RESET )
        return true;
    return orig == TCP_ENDPOINT_CLOSED && resp == TCP_ENDPOINT_CLOSED;
}

} // namespace tapline
