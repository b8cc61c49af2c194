// Where the headers of a packet lie in the frame that was captured, and with that: how much of the frame is a packet's
// head, and lengths that the packet itself does not tell.

#pragma once

#include "flow.h"

namespace tapline {

// Whether Zeek's scripts would see the packet's transport header: it was captured whole, and is one.
bool has_transport(const Packet& packet, LazyFrame& lazy_frame);

// Payload bytes by the IP header, whatever was captured; by the frame where the IP header says 0.
uint32_t payload_bytes(const Packet& packet, bool is_tunneled, LazyFrame& lazy_frame);

// Bytes of the frame that its head has. There must be a frame.
uint32_t head_bytes(const Packet& packet, uint32_t payload, HeadsKind kind, bool is_tunneled, LazyFrame& lazy_frame);

// Tracegram's link-type byte, by libpcap's link type; 0 where it has none.
uint8_t link_type_byte(int link_type, bool is_v6);

} // namespace tapline
