// Packets of a connection that Zeek keeps from analyzers, in versions without TapAnalyzer: those with a bad checksum, those
// with a broken or cut transport header, those of connections whose processing a script ended.

#pragma once

#include "tap.h"

namespace tapline {

#if TAPLINE_HAS_TAP_ANALYZER

inline void note_seen() {}
inline void watch_refused() {}

#else

// Whether a tap saw the packet that is being processed.
extern bool is_packet_seen;
inline void note_seen() { is_packet_seen = true; }

// Puts watchers before the packet analyzers of TCP, UDP and ICMP.
void watch_refused();

#endif

} // namespace tapline
