#include "batch.h"

#include <zeek/Reporter.h>
#include <zeek/Type.h>
#include <zeek/ZeekString.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <span>
#include <vector>

#include "deflate.h"
#include "heads.h"
#include "tap.h"

namespace tapline {

namespace {

constexpr size_t max_service_bytes = 128;

// Compression of a batch, by its first byte; 0 would be none.
enum Compression : uint8_t { Zlib = 1 };

// What a batch begins with, and a flow.
constexpr size_t batch_front_bytes = 8;
constexpr size_t flow_front_bytes = 120;

constexpr size_t length_bytes = 4;
constexpr size_t head_numbers_bytes = 8 + 2;

using Bytes = std::vector<uint8_t>;

struct Batch {
    Bytes bytes; // keeps its room from batch to batch
    uint64_t flows = 0;
};

std::map<uint64_t, Batch> batches;

// Writes numbers, little-endian, and bytes end to end, where there is room for them.
class Writer {
public:
    explicit Writer(uint8_t* at) : at(at) {}

    template<typename T>
    void Put(T number) {
        if constexpr ( std::endian::native == std::endian::little )
            memcpy(at, &number, sizeof number);
        else
            for ( size_t i = 0; i < sizeof number; ++i )
                at[i] = static_cast<uint8_t>(static_cast<uint64_t>(number) >> 8 * i);
        at += sizeof number;
    }

    void PutBytes(const void* data, size_t size) {
        if ( size > 0 ) // of nothing the data may be null
            memcpy(at, data, size);
        at += size;
    }

    // Network byte order, in 16 bytes, which are zero so far.
    void PutAddress(const zeek::IPAddr& address) {
        const uint32_t* words;
        size_t size = 4 * address.GetBytes(&words);
        memcpy(at, words, size);
        at += 16;
    }

private:
    uint8_t* at;
};

std::string_view cut(std::string_view text, size_t size) { return text.substr(0, size); }

// Whether the first packet's sender is what Zeek now takes for the originator.
bool sent_by_orig(const ConnectionFacts& facts, const Flow& flow) {
    const uint32_t* words;
    size_t size = 4 * facts.orig_h.GetBytes(&words);
    return memcmp(words, flow.first_address.data(), size) == 0 &&
           (! flow.is_same_host || flow.first_port == facts.orig_p);
}

// Content from the originator and from the responder, as Zeek now sees them.
struct Sides {
    std::span<const uint8_t> orig;
    std::span<const uint8_t> resp;
};

Sides sides(const ConnectionFacts& facts, const Kept& kept, const Extent& extent) {
    int orig = kept.BeganWith(facts.orig_h, htons(facts.orig_p)) ? 0 : 1;
    int resp = 1 - orig;
    return {std::span(kept.flow.content[orig].bytes).first(extent.content[orig]),
            std::span(kept.flow.content[resp].bytes).first(extent.content[resp])};
}

auto lengths_of(const Flow& flow, const Extent& extent) { return std::span(flow.lengths).first(extent.lengths); }

auto heads_of(const Flow& flow, const Extent& extent) { return std::span(flow.heads).first(extent.heads); }

uint8_t heads_link_type(const ConnectionFacts& facts, HeadsKind heads_kind) {
    if ( heads_kind == HeadsKind::None )
        return 0;
    return link_type_byte(source_link_type(), facts.orig_h.GetFamily() == IPv6);
}

void put_flow(Bytes& out, const ConnectionFacts& facts, const Kept& kept, bool is_final, HeadsKind heads_kind,
              std::string_view server_name) {
    const Flow& flow = kept.flow;
    const Extent extent = is_final ? flow.CurrentExtent() : kept.early;
    const auto [orig_bytes, resp_bytes] = sides(facts, kept, extent);
    std::string_view uid = cut(facts.uid, UINT8_MAX);
    std::string_view service = cut(facts.service, max_service_bytes);
    std::string_view conn_state = cut(facts.conn_state, UINT8_MAX);
    server_name = cut(server_name, UINT8_MAX);
    bool is_straight = sent_by_orig(facts, flow);
    bool is_v6 = facts.orig_h.GetFamily() == IPv6;

    const auto lengths = lengths_of(flow, extent);
    const auto heads = heads_of(flow, extent);
    const size_t size = flow_front_bytes + length_bytes * lengths.size() + head_numbers_bytes * heads.size() +
                        extent.head_bytes + orig_bytes.size() + resp_bytes.size() + uid.size() + service.size() +
                        conn_state.size() + server_name.size();
    const size_t start = out.size();
    out.resize(start + size);
    Writer writer(out.data() + start);
    writer.Put<uint32_t>(size);
    writer.Put<uint8_t>((is_final ? 1 : 0) | (is_v6 ? 2 : 0));
    writer.Put<uint8_t>(facts.protocol);
    writer.Put<uint8_t>(heads_link_type(facts, heads_kind));
    writer.Put<uint8_t>(static_cast<uint8_t>(heads_kind));
    writer.Put<uint16_t>(facts.orig_p);
    writer.Put<uint16_t>(facts.resp_p);
    writer.Put<uint64_t>(facts.start_us);
    writer.Put<uint64_t>(facts.duration_us);
    writer.Put<uint64_t>(facts.orig_pkts);
    writer.Put<uint64_t>(facts.resp_pkts);
    writer.Put<uint64_t>(facts.orig_ip_bytes);
    writer.Put<uint64_t>(facts.resp_ip_bytes);
    writer.Put<uint64_t>(is_straight ? extent.ahead : extent.back);
    writer.Put<uint64_t>(is_straight ? extent.back : extent.ahead);
    writer.PutAddress(facts.orig_h);
    writer.PutAddress(facts.resp_h);
    writer.Put<uint8_t>(uid.size());
    writer.Put<uint8_t>(service.size());
    writer.Put<uint8_t>(conn_state.size());
    writer.Put<uint8_t>(server_name.size());
    writer.Put<uint8_t>(lengths.size());
    writer.Put<uint8_t>(heads.size());
    writer.Put<uint16_t>(orig_bytes.size());
    writer.Put<uint16_t>(resp_bytes.size());
    writer.Put<uint16_t>(0);
    for ( int32_t length : lengths )
        writer.Put<int32_t>(is_straight ? length : -length);
    for ( const Head& head : heads )
        writer.Put<uint64_t>(head.gap_us);
    for ( const Head& head : heads )
        writer.Put<uint16_t>(head.bytes);
    writer.PutBytes(flow.head_bytes.data(), extent.head_bytes);
    writer.PutBytes(orig_bytes.data(), orig_bytes.size());
    writer.PutBytes(resp_bytes.data(), resp_bytes.size());
    for ( std::string_view text : {uid, service, conn_state, server_name} )
        writer.PutBytes(text.data(), text.size());
}

// Flows in base64, with what a batch begins with.
zeek::StringValPtr packed(std::span<const uint8_t> flows) {
    static Deflater deflater;
    static Bytes batch; // keeps its room
    batch.resize(std::max(batch.size(), batch_front_bytes + Deflater::Bound(flows.size())));
    Writer writer(batch.data());
    writer.Put<uint32_t>(Zlib); // and three bytes of zero
    writer.Put<uint32_t>(flows.size());
    size_t size = batch_front_bytes + deflater.Stream(batch.data() + batch_front_bytes, flows);
    const size_t characters = base64_size(size);
    auto* text = new u_char[characters + 1];
    base64(reinterpret_cast<char*>(text), std::span(batch).first(size));
    text[characters] = 0;
    return zeek::make_intrusive<zeek::StringVal>(new zeek::String(true, text, static_cast<int>(characters)));
}

std::string hex(std::span<const uint8_t> data) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    text.reserve(2 * data.size());
    for ( uint8_t byte : data ) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

std::string protocol_name(uint8_t protocol) {
    switch ( protocol ) {
        case 6: return "tcp";
        case 17: return "udp";
        case 1:
        case 58: return "icmp";
        default: return std::to_string(protocol);
    }
}

std::string lengths_text(const Flow& flow, const Extent& extent, bool is_straight) {
    std::string text;
    for ( int32_t length : lengths_of(flow, extent) ) {
        if ( ! text.empty() )
            text += ',';
        text += std::to_string(is_straight ? length : -length);
    }
    return text;
}

std::string heads_text(const Flow& flow, const Extent& extent) {
    std::string text;
    const uint8_t* data = flow.head_bytes.data();
    for ( const Head& head : heads_of(flow, extent) ) {
        if ( ! text.empty() )
            text += ';';
        text += std::to_string(head.gap_us) + ':' + hex({data, head.bytes});
        data += head.bytes;
    }
    return text;
}

const char* kind_name(HeadsKind kind) {
    switch ( kind ) {
        case HeadsKind::Header: return "header";
        case HeadsKind::Full: return "full";
        default: return "none";
    }
}

} // namespace

uint64_t pack(uint64_t shard, const ConnectionFacts& facts, const Kept& kept, bool is_final, HeadsKind heads_kind,
              std::string_view server_name) {
    Batch& batch = batches[shard];
    if ( batch.flows == max_batch_flows || batch.bytes.size() >= max_batch_bytes / 2 ) {
        zeek::reporter->Error("Tapline's plugin: a shard's batch is full and must be taken");
        return batch.flows;
    }
    put_flow(batch.bytes, facts, kept, is_final, heads_kind, server_name);
    return ++batch.flows;
}

zeek::RecordValPtr take(uint64_t shard) {
    static const auto type = zeek::id::find_type<zeek::RecordType>("Tapline::Batch");
    Batch& batch = batches[shard];
    auto record = zeek::make_intrusive<zeek::RecordVal>(type);
    record->Assign(0, batch.flows);
    record->Assign(1, packed(batch.bytes));
    batch.bytes.clear();
    batch.flows = 0;
    return record;
}

zeek::VectorValPtr waiting_shards() {
    auto shards = zeek::make_intrusive<zeek::VectorVal>(zeek::id::index_vec);
    for ( const auto& [shard, batch] : batches )
        if ( batch.flows > 0 )
            shards->Append(zeek::val_mgr->Count(shard));
    return shards;
}

zeek::RecordValPtr flow_record(const ConnectionFacts& facts, const Kept& kept, bool is_final, HeadsKind heads_kind) {
    static const auto type = zeek::id::find_type<zeek::RecordType>("Tapline::Flow");
    const Flow& flow = kept.flow;
    const Extent extent = is_final ? flow.CurrentExtent() : kept.early;
    const auto [orig_bytes, resp_bytes] = sides(facts, kept, extent);
    bool is_straight = sent_by_orig(facts, flow);
    auto record = zeek::make_intrusive<zeek::RecordVal>(type);
    record->AssignField("version", uint64_t{0});
    record->AssignField("sensor", "");
    record->AssignField("seq", uint64_t{0});
    record->AssignField("final", is_final);
    record->AssignField("uid", facts.uid);
    record->AssignField("start_us", facts.start_us);
    record->AssignField("duration_us", facts.duration_us);
    record->AssignField("orig_h", zeek::make_intrusive<zeek::AddrVal>(facts.orig_h));
    record->AssignField("orig_p", uint64_t{facts.orig_p});
    record->AssignField("resp_h", zeek::make_intrusive<zeek::AddrVal>(facts.resp_h));
    record->AssignField("resp_p", uint64_t{facts.resp_p});
    record->AssignField("proto", protocol_name(facts.protocol));
    record->AssignField("service", facts.service);
    record->AssignField("conn_state", facts.conn_state);
    record->AssignField("orig_pkts", facts.orig_pkts);
    record->AssignField("resp_pkts", facts.resp_pkts);
    record->AssignField("orig_ip_bytes", facts.orig_ip_bytes);
    record->AssignField("resp_ip_bytes", facts.resp_ip_bytes);
    record->AssignField("up", is_straight ? extent.ahead : extent.back);
    record->AssignField("down", is_straight ? extent.back : extent.ahead);
    record->AssignField("payload_lengths", lengths_text(flow, extent, is_straight));
    record->AssignField("orig_bytes", hex(orig_bytes));
    record->AssignField("resp_bytes", hex(resp_bytes));
    record->AssignField("link_type", uint64_t{heads_link_type(facts, heads_kind)});
    record->AssignField("heads_kind", kind_name(heads_kind));
    record->AssignField("heads", heads_text(flow, extent));
    return record;
}

void drop_batches() { batches.clear(); }

} // namespace tapline
