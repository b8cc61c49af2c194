#include "flow.h"

#include <algorithm>
#include <cstring>

#include "heads.h"

namespace tapline {

namespace {

// Source port, or the ICMP type; 0 where the protocol has none.
uint16_t source_port(const Packet& packet) {
    switch ( packet.protocol ) {
        case 6:
        case 17: return static_cast<uint16_t>(packet.transport[0] << 8 | packet.transport[1]);
        case 1:
        case 58: return packet.transport[0];
        default: return 0;
    }
}

} // namespace

Extent Flow::CurrentExtent() const {
    auto size = [](const auto& kept) { return static_cast<uint16_t>(kept.size()); };
    return {ahead, back, size(lengths), size(heads), size(head_bytes), {size(content[0].bytes), size(content[1].bytes)}};
}

void Flow::Begin(const Packet& packet, const Options& options) {
    has_begun = true;
    memcpy(first_address.data(), packet.Source(), packet.AddressBytes());
    if ( is_same_host )
        first_port = source_port(packet);
    if ( options.heads != HeadsKind::None )
        heads_left = heads_token_budget;
}

bool Flow::IsAhead(const Packet& packet) const {
    if ( is_same_host )
        return source_port(packet) == first_port;
    return memcmp(first_address.data(), packet.Source(), packet.AddressBytes()) == 0;
}

Flow::Signal Flow::AddPacket(const Packet& packet, const Options& options, bool is_tunneled, LazyFrame& lazy_frame) {
    if ( ! has_begun )
        Begin(packet, options);
    uint32_t payload = payload_bytes(packet, is_tunneled, lazy_frame);
    if ( heads_left > 0 && lazy_frame.Get() )
        AddHead(packet, payload, options, is_tunneled, lazy_frame);
    if ( payload == 0 )
        return Nothing;

    bool is_ahead = IsAhead(packet);
    ++(is_ahead ? ahead : back);
    if ( lengths.size() == max_payload_lengths )
        return Nothing;
    lengths.push_back(is_ahead ? static_cast<int32_t>(payload) : -static_cast<int32_t>(payload));
    if ( early_due )
        return Nothing;
    if ( lengths.size() == options.early_packets ) {
        early_due = true;
        return Due;
    }
    return lengths.size() == 1 && options.early_interval > 0.0 ? FirstPayload : Nothing;
}

void Flow::AddHead(const Packet& packet, uint32_t payload, const Options& options, bool is_tunneled, LazyFrame& lazy_frame) {
    const Frame& frame = *lazy_frame.Get();
    uint32_t keep = tapline::head_bytes(packet, payload, options.heads, is_tunneled, lazy_frame);
    keep = std::min<uint32_t>(keep, heads_left - head_token_cost);
    heads_left -= keep + head_token_cost;
    if ( heads_left < head_token_cost )
        heads_left = 0;
    uint64_t gap = ! heads.empty() && frame.time_us > last_head_us ? frame.time_us - last_head_us : 0;
    // Of most connections a second head is not the last.
    if ( heads.size() == 1 ) {
        heads.reserve(4);
        head_bytes.reserve(192);
    }
    heads.push_back({gap, static_cast<uint16_t>(keep)});
    head_bytes.insert(head_bytes.end(), frame.data, frame.data + keep);
    last_head_us = frame.time_us;
}

Flow::Signal Flow::AddContent(int side, const uint8_t* data, size_t size, const Options& options) {
    Content& c = content[side];
    if ( c.is_done )
        return Nothing;
    size_t room = options.content_bytes - std::min<size_t>(options.content_bytes, c.bytes.size());
    if ( size >= room ) {
        size = room;
        c.is_done = true;
    }
    c.bytes.insert(c.bytes.end(), data, data + size);
    if ( early_due || options.early_bytes == 0 ||
         content[0].bytes.size() + content[1].bytes.size() < options.early_bytes )
        return Nothing;
    early_due = true;
    return Due;
}

Flow::Signal Flow::AddStream(int side, uint64_t seq, const uint8_t* data, size_t size, const Options& options) {
    Content& c = content[side];
    if ( c.is_done )
        return Nothing;
    // What comes after a gap is left out; a stream whose beginning was not seen starts with what was.
    if ( c.next_seq > 0 && seq != c.next_seq ) {
        c.is_done = c.stopped_at_gap = true;
        return Nothing;
    }
    c.next_seq = seq + size;
    return AddContent(side, data, size, options);
}

} // namespace tapline
