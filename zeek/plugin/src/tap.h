// Attaches to the connections that are observed, and feeds their flows with packets and content. The two generations of
// Zeek's interface differ here and in refused.cc alone.

#pragma once

#include <zeek/zeek-version.h>

#include "kept.h"

// From 8.1 on Zeek has packet_analysis::TapAnalyzer, which sees every packet of a connection. Before, an analyzer sees those
// that Zeek does not refuse, which refused.cc makes up for.
#define TAPLINE_HAS_TAP_ANALYZER (ZEEK_VERSION_NUMBER >= 80100)

namespace zeek {
class IP_Hdr;
} // namespace zeek

namespace zeek::plugin {
class Component;
}

namespace tapline {

// What the scripts configured; nothing is attached before.
struct Settings {
    bool is_configured = false;
    Options options;
};

extern Settings settings;

// The names of the analyzers, for the plugin to tell Zeek.
std::array<zeek::plugin::Component*, 2> make_components();

// For each new connection, before its first packet is processed.
void attach(zeek::Connection* conn);

// What the packets' analyzer of a connection keeps; null where it has none.
Kept* kept_by(zeek::Connection& conn);

// The current packet of a connection, where no tap saw it.
void add_packet(Kept& kept, const zeek::IP_Hdr& ip);

// The frame that Zeek works on.
bool current_frame(Frame& frame);

// libpcap's link type of the packet source, -1 without one.
int source_link_type();

} // namespace tapline
