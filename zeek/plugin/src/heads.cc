#include "heads.h"

#include <algorithm>
#include <cstring>

namespace tapline {

namespace {

constexpr uint8_t icmp = 1, tcp = 6, udp = 17, icmp6 = 58;

// libpcap's link types.
constexpr int ethernet = 1;

uint16_t big_endian(const uint8_t* data) { return static_cast<uint16_t>(data[0] << 8 | data[1]); }

// Bytes before the IP header where the link layer has no options, or -1.
int fixed_link_bytes(int link_type) {
    switch ( link_type ) {
        case 0:
        case 108: return 4;
        case 113: return 16;
        case 276: return 20;
        case 12:
        case 14:
        case 101:
        case 228:
        case 229: return 0;
        default: return -1;
    }
}

bool is_ip(uint16_t ether_type) { return ether_type == 0x0800 || ether_type == 0x86dd; }

// Offset of the frame's first IP header where the link layer alone tells it, or -1.
int link_bytes(const Frame& frame) {
    if ( int fixed = fixed_link_bytes(frame.link_type); fixed >= 0 )
        return fixed;
    if ( frame.link_type != ethernet || frame.captured < 14 )
        return -1;
    uint16_t ether_type = big_endian(frame.data + 12);
    if ( is_ip(ether_type) )
        return 14;
    if ( ether_type != 0x8100 || frame.captured < 18 )
        return -1;
    return is_ip(big_endian(frame.data + 16)) ? 18 : -1;
}

// Where source and destination address stand next to each other in the frame, behind what may be the beginning of their IP
// header: under tunnels and rare link layers.
int searched_ip_offset(const Packet& packet, bool is_tunneled, const Frame& frame) {
    const uint8_t* pair = packet.Source();
    const size_t pair_bytes = 2 * packet.AddressBytes();
    const size_t before = packet.is_v4 ? 12 : 8;
    const int version = packet.is_v4 ? 4 : 6;
    const size_t end = std::min<size_t>(frame.captured, 512);
    int found = -1;
    for ( size_t at = before; at + pair_bytes <= end; ++at ) {
        if ( memcmp(frame.data + at, pair, pair_bytes) != 0 || frame.data[at - before] >> 4 != version )
            continue;
        found = static_cast<int>(at - before);
        if ( ! is_tunneled )
            break;
    }
    return found;
}

// Offset of the packet's IP header in the frame, or -1.
int ip_offset(const Packet& packet, bool is_tunneled, const Frame& frame) {
    if ( is_tunneled )
        return searched_ip_offset(packet, true, frame);
    int offset = link_bytes(frame);
    return offset < 0 ? searched_ip_offset(packet, false, frame) : offset;
}

// Bytes captured from the IP header on.
size_t captured_ip_bytes(const Packet& packet, const Frame& frame) {
    if ( packet.is_reassembled || packet.header < frame.data || packet.header >= frame.data + frame.captured )
        return packet.ip_bytes;
    return frame.data + frame.captured - packet.header;
}

uint32_t tcp_header_bytes(const Packet& packet) { return 4 * (packet.transport[12] >> 4); }

uint32_t transport_bytes(const Packet& packet, LazyFrame& lazy_frame) {
    switch ( packet.protocol ) {
        case tcp: {
            uint32_t bytes = tcp_header_bytes(packet);
            return bytes >= 20 || has_transport(packet, lazy_frame) ? bytes : 20;
        }
        case udp:
        case icmp:
        case icmp6: return 8;
        default: return 0;
    }
}

// Extension headers that count their length in 8 octets and may come before the fragment header (RFC 8200, 4.1).
bool may_precede_fragment(uint8_t kind) { return kind == 0x00 || kind == 0x2b || kind == 0x3c; }

constexpr uint8_t fragment_kind = 0x2c;

// Where the IP header at `start` ends if it is that of a fragment, with the fragment header of IPv6; otherwise 0.
uint32_t fragment_header_end(const Frame& frame, uint32_t start) {
    if ( frame.captured < start + 20 )
        return 0;
    const uint8_t* ip = frame.data + start;
    if ( ip[0] >> 4 == 4 )
        return (big_endian(ip + 6) & 0x3fff) > 0 ? start + 4 * (ip[0] & 0x0f) : 0;
    uint8_t kind = ip[6];
    uint32_t at = start + 40;
    while ( may_precede_fragment(kind) && frame.captured >= at + 8 ) {
        kind = frame.data[at];
        at += 8 * (frame.data[at + 1] + 1);
    }
    return kind == fragment_kind && frame.captured >= at + 8 ? at + 8 : 0;
}

// MF or offset of an IPv4 header.
bool is_v4_fragment(const Packet& packet) { return (big_endian(packet.header + 6) & 0x3fff) != 0; }

// Where the frame's own IP header ends if the packet was put together from fragments, of which the frame is one; otherwise
// 0. `start` is where an IP header lies, the frame's first one is looked at in any case.
uint32_t fragment_end(const Packet& packet, int start, bool is_tunneled, const Frame& frame, LazyFrame& lazy_frame) {
    if ( ! is_tunneled && packet.is_v4 && ! is_v4_fragment(packet) )
        return 0;
    // A first fragment cut by the snap length is not put together with others.
    bool has_header = packet.protocol == tcp || packet.protocol == udp || packet.protocol == icmp || packet.protocol == icmp6;
    if ( has_header && ! has_transport(packet, lazy_frame) )
        return 0;
    int first = link_bytes(frame);
    uint32_t end = first < 0 ? 0 : fragment_header_end(frame, first);
    return end > 0 || start < 0 || start == first ? end : fragment_header_end(frame, start);
}

// Whether a packet in an Ethernet frame may be put together from fragments, as far as its header tells.
bool may_be_reassembled(const Packet& packet, const Frame& frame) {
    if ( packet.is_v4 )
        return is_v4_fragment(packet);
    return packet.header_bytes > 40 || frame.data[20] == fragment_kind;
}

// Bytes of the frame up to the end of the transport header.
uint32_t header_bytes(const Packet& packet, uint32_t payload, bool is_tunneled, const Frame& frame, LazyFrame& lazy_frame) {
    int offset = ip_offset(packet, is_tunneled, frame);
    if ( uint32_t end = fragment_end(packet, offset, is_tunneled, frame, lazy_frame) )
        return end;
    if ( offset < 0 )
        return frame.captured;
    return offset + (packet.ip_bytes > 0 ? packet.ip_bytes - payload : packet.header_bytes + transport_bytes(packet, lazy_frame));
}

// Bytes of the frame that were captured; where it is a fragment, those up to the end of its IP packet.
uint32_t whole_bytes(const Packet& packet, bool is_tunneled, const Frame& frame, LazyFrame& lazy_frame) {
    int first = link_bytes(frame);
    if ( fragment_end(packet, first, is_tunneled, frame, lazy_frame) == 0 )
        return frame.captured;
    const uint8_t* ip = frame.data + first;
    return first + (ip[0] >> 4 == 4 ? big_endian(ip + 2) : 40 + big_endian(ip + 4));
}

} // namespace

bool has_transport(const Packet& packet, LazyFrame& lazy_frame) {
    // Zeek wants so many bytes of payload for each.
    uint32_t least;
    switch ( packet.protocol ) {
        case tcp: least = 20; break;
        case udp: least = 8; break;
        case icmp: least = 28; break;
        case icmp6: least = 8; break;
        default: return false;
    }
    if ( packet.payload_bytes < least )
        return false;
    const Frame* frame = packet.is_reassembled ? nullptr : lazy_frame.Get();
    return ! frame || captured_ip_bytes(packet, *frame) >= static_cast<size_t>(packet.header_bytes) + packet.payload_bytes;
}

uint32_t payload_bytes(const Packet& packet, bool is_tunneled, LazyFrame& lazy_frame) {
    uint32_t ip_bytes = packet.ip_bytes;
    if ( ip_bytes == 0 ) {
        const Frame* frame = lazy_frame.Get();
        int offset = frame ? ip_offset(packet, is_tunneled, *frame) : -1;
        if ( offset < 0 || frame->wire < static_cast<uint32_t>(offset) )
            return 0;
        ip_bytes = frame->wire - offset;
    }
    uint32_t headers = packet.header_bytes + transport_bytes(packet, lazy_frame);
    return ip_bytes > headers ? ip_bytes - headers : 0;
}

uint32_t head_bytes(const Packet& packet, uint32_t payload, HeadsKind kind, bool is_tunneled, LazyFrame& lazy_frame) {
    const Frame& frame = *lazy_frame.Get();
    uint32_t keep;
    if ( kind == HeadsKind::Full )
        keep = whole_bytes(packet, is_tunneled, frame, lazy_frame);
    // Most frames are an Ethernet header and the packet. Those of 60 or 64 bytes may be padded, so they are looked into.
    else if ( frame.link_type == ethernet && frame.captured == 14 + packet.ip_bytes && frame.captured != 60 &&
              frame.captured != 64 && ! is_tunneled && ! may_be_reassembled(packet, frame) )
        keep = frame.captured - payload;
    else
        keep = header_bytes(packet, payload, is_tunneled, frame, lazy_frame);
    return std::min(keep, frame.captured);
}

uint8_t link_type_byte(int link_type, bool is_v6) {
    switch ( link_type ) {
        case 12:
        case 14:
        case 101: return is_v6 ? 6 : 21;
        case 0:
        case 108: return 1;
        case 1: return 3;
        case 113: return 9;
        case 276: return 20;
        case 228: return 21;
        case 229: return 6;
        default: return 0;
    }
}

} // namespace tapline
