#include "refused.h"

#if ! TAPLINE_HAS_TAP_ANALYZER

#include <netinet/in.h>
#include <zeek/Conn.h>
#include <zeek/IP.h>
#include <zeek/conn_key/Manager.h>
#include <zeek/packet_analysis/Analyzer.h>
#include <zeek/packet_analysis/Manager.h>
#include <zeek/packet_analysis/protocol/icmp/ICMP.h>
#include <zeek/packet_analysis/protocol/ip/SessionAdapter.h>
#include <zeek/packet_analysis/protocol/ip/conn_key/IPBasedConnKey.h>
#include <zeek/session/Manager.h>

namespace tapline {

bool is_packet_seen = false;

namespace {

// Bytes that a packet must have for Zeek to find its connection.
size_t least_bytes(int protocol) { return protocol == IPPROTO_TCP ? 20 : 8; }

zeek::Connection* connection_of(const zeek::Packet& packet) {
    using namespace zeek::packet_analysis::ICMP;
    static const zeek::IPBasedConnKeyPtr key(
        static_cast<zeek::IPBasedConnKey*>(zeek::conn_key_mgr->GetFactory().NewConnKey().release()));
    const zeek::IP_Hdr& ip = *packet.ip_hdr;
    const u_char* transport = ip.Payload();
    uint16_t ports[2];
    bool is_one_way = false;
    if ( packet.proto == IPPROTO_ICMP || packet.proto == IPPROTO_ICMPV6 ) {
        auto counterpart = packet.proto == IPPROTO_ICMP ? ICMP4_counterpart : ICMP6_counterpart;
        ports[0] = htons(transport[0]);
        ports[1] = htons(counterpart(transport[0], transport[1], is_one_way));
    }
    else
        memcpy(ports, transport, sizeof ports);
    key->InitTuple(ip.SrcAddr(), ports[0], ip.DstAddr(), ports[1], packet.proto, is_one_way);
    key->Init(packet);
    return zeek::session_mgr->FindConnection(*key);
}

// Stands before the packet analyzer of a transport protocol and looks at what it did with a packet.
class Watcher final : public zeek::packet_analysis::Analyzer {
public:
    explicit Watcher(const zeek::packet_analysis::AnalyzerPtr& watched)
        : Analyzer(watched->GetAnalyzerTag()), watched(watched) {}

    bool AnalyzePacket(size_t size, const uint8_t* data, zeek::Packet* packet) override {
        // Packets in a tunnel are processed within the outer one.
        bool was_seen = is_packet_seen;
        is_packet_seen = false;
        bool result = watched->AnalyzePacket(size, data, packet);
        if ( ! is_packet_seen && packet->processed && packet->ip_hdr && size >= least_bytes(packet->proto) )
            AddUnseen(*packet);
        is_packet_seen = was_seen;
        return result;
    }

private:
    // Zeek names the connection of a packet that it accepts. That no tap saw it means that there is none, but for ICMP, of
    // which analyzers get no packet that was not captured whole.
    static void AddUnseen(const zeek::Packet& packet) {
        if ( packet.session && packet.proto != IPPROTO_ICMP && packet.proto != IPPROTO_ICMPV6 )
            return;
        zeek::Connection* conn = connection_of(packet);
        if ( Kept* kept = conn ? kept_by(*conn) : nullptr )
            add_packet(*kept, *packet.ip_hdr);
    }

    zeek::packet_analysis::AnalyzerPtr watched;
};

// Which analyzer another one gives packets of a protocol to. Registering a second one would do too, but Zeek prints a line for
// each that it puts in another's place.
struct Dispatch : zeek::packet_analysis::Analyzer {
    static zeek::packet_analysis::AnalyzerPtr& To(const zeek::packet_analysis::Analyzer& parent, int protocol) {
        return const_cast<zeek::packet_analysis::AnalyzerPtr&>((parent.*&Dispatch::Lookup)(protocol));
    }
};

} // namespace

void watch_refused() {
    const auto& ip = zeek::packet_mgr->GetAnalyzer("IP");
    if ( ! ip )
        return;
    constexpr int protocols[] = {IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ICMPV6};
    for ( int protocol : protocols )
        if ( auto& watched = Dispatch::To(*ip, protocol) )
            watched = std::make_shared<Watcher>(watched);
}

} // namespace tapline

#endif
