#include "tap.h"

#include <zeek/Conn.h>
#include <zeek/Func.h>
#include <zeek/IP.h>
#include <zeek/Reporter.h>
#include <zeek/RunState.h>
#include <zeek/TunnelEncapsulation.h>
#include <zeek/analyzer/Component.h>
#include <zeek/analyzer/Manager.h>
#include <zeek/analyzer/protocol/tcp/TCP.h>
#include <zeek/analyzer/protocol/tcp/TCP_Reassembler.h>
#include <zeek/iosource/Manager.h>
#include <zeek/iosource/PktSrc.h>
#include <zeek/packet_analysis/protocol/ip/SessionAdapter.h>

#include "early.h"
#include "refused.h"

namespace tapline {

Settings settings;

namespace {

zeek::analyzer::Component* packets_component = nullptr;
zeek::analyzer::Component* stream_component = nullptr;

void act_on(Kept& kept, Flow::Signal signal) {
    if ( signal == Flow::Due )
        early.Due(kept);
    else if ( signal == Flow::FirstPayload )
        early.DueIn(kept, settings.options.early_interval);
}

// Whether the connection's originator is still who it was when it began.
bool is_as_it_began(const Kept& kept) { return kept.BeganWith(kept.conn->OrigAddr(), kept.conn->OrigPort()); }

// A datagram's content. Zeek may have turned the connection since it told the packet's direction, so that is told anew.
void add_datagram(Kept& kept, const zeek::IP_Hdr& ip, const uint8_t* data, size_t size) {
    uint16_t port;
    memcpy(&port, ip.Payload(), sizeof port);
    int side = kept.BeganWith(ip.SrcAddr(), port) ? 0 : 1;
    act_on(kept, kept.flow.AddContent(side, data, size, settings.options));
}

// The reassembled stream of a TCP connection, until both directions have all they keep.
class StreamTap final : public zeek::analyzer::tcp::TCP_ApplicationAnalyzer {
public:
    StreamTap(zeek::Connection* conn, KeptPtr kept) : TCP_ApplicationAnalyzer(conn), kept(std::move(kept)) {
        SetAnalyzerTag(stream_component->Tag());
    }

    void DeliverStream(int size, const u_char* data, bool is_orig) override {
        // Not the base class: it has nothing to do.
        auto* tcp = TCP();
        auto* endpoint = tcp ? (is_orig ? tcp->Orig() : tcp->Resp()) : nullptr;
        if ( ! kept->conn || ! endpoint || ! endpoint->contents_processor || size < 0 )
            return;
        uint64_t seq = endpoint->contents_processor->DataSeq() - size;
        int side = is_orig == is_as_it_began(*kept) ? 0 : 1;
        act_on(*kept, kept->flow.AddStream(side, seq, data, size, settings.options));
        if ( kept->flow.HasAllContent() )
            Remove();
    }

private:
    KeptPtr kept;
};

void attach_stream(zeek::Connection* conn, const KeptPtr& kept) {
    auto* adapter = static_cast<zeek::packet_analysis::TCP::TCPSessionAdapter*>(conn->GetSessionAdapter());
    if ( ! adapter->Orig()->HasContents() )
        adapter->EnableReassembly();
    adapter->AddChildAnalyzer(new StreamTap(conn, kept));
}

void update_record(const KeptPtr& kept, zeek::RecordVal& connection) {
    // Without payload there is nothing to find, unless such flows are published too.
    if ( kept->flow.PayloadPackets() > 0 || settings.options.publish_without_payload )
        keep(connection, kept);
}

bool is_in_tunnel(const zeek::Connection& conn) {
    auto encapsulation = conn.GetEncapsulation();
    return encapsulation && encapsulation->Depth() > 0;
}

void end(Kept& kept) {
    early.Forget(kept);
    kept.conn = nullptr;
}

bool keeps_content_of(const zeek::Connection& conn, TransportProto transport) {
    return settings.options.content_bytes > 0 && conn.ConnTransport() == transport;
}

// The packets of a connection, as an analyzer sees them.
class PacketsAnalyzer final : public zeek::analyzer::Analyzer {
public:
    PacketsAnalyzer(zeek::Connection* conn, KeptPtr arg_kept)
        : Analyzer(packets_component->Tag(), conn), kept(std::move(arg_kept)),
          keeps_datagrams(keeps_content_of(*conn, TRANSPORT_UDP)) {}

    void DeliverPacket(int size, const u_char* data, bool, uint64_t, const zeek::IP_Hdr* ip, int) override {
        note_seen();
        if ( ! ip || ! kept->conn )
            return;
        add_packet(*kept, *ip);
        if ( keeps_datagrams && size >= 0 && ! kept->flow.HasAllContent() )
            add_datagram(*kept, *ip, data, size);
    }

    void UpdateConnVal(zeek::RecordVal* connection) override { update_record(kept, *connection); }

    void Done() override {
        Analyzer::Done();
        end(*kept);
    }

    Kept* GetKept() const { return kept.get(); }

private:
    KeptPtr kept;
    bool keeps_datagrams;
};

#if TAPLINE_HAS_TAP_ANALYZER

// The packets of a TCP, UDP or ICMP connection: all, those that Zeek refuses too.
class PacketsTap final : public zeek::packet_analysis::TapAnalyzer {
public:
    PacketsTap(zeek::Connection* conn, KeptPtr arg_kept)
        : kept(std::move(arg_kept)), keeps_datagrams(keeps_content_of(*conn, TRANSPORT_UDP)),
          awaits_stream(keeps_content_of(*conn, TRANSPORT_TCP)) {}

    void TapPacket(const zeek::Packet& packet, zeek::packet_analysis::PacketAction action,
                   zeek::packet_analysis::SkipReason) override {
        if ( ! packet.ip_hdr || ! kept->conn )
            return;
        const zeek::IP_Hdr& ip = *packet.ip_hdr;
        add_packet(*kept, ip);
        if ( action != zeek::packet_analysis::PacketAction::Deliver )
            return;
        if ( keeps_datagrams && ! kept->flow.HasAllContent() )
            AddDatagram(packet, ip);
        // A connection needs it from its first payload on, which Zeek looks at after this.
        if ( awaits_stream && kept->flow.PayloadPackets() > 0 ) {
            awaits_stream = false;
            attach_stream(kept->conn, kept);
        }
    }

    void UpdateConnVal(zeek::RecordVal* connection) override { update_record(kept, *connection); }

    void Done() override { end(*kept); }

private:
    void AddDatagram(const zeek::Packet& packet, const zeek::IP_Hdr& ip) {
        constexpr size_t header_bytes = 8;
        const u_char* end = packet.data + packet.cap_len;
        bool is_in_packet = ! ip.Reassembled() && ip.Payload() >= packet.data && ip.Payload() <= end;
        size_t captured = is_in_packet ? end - ip.Payload() : ip.PayloadLen();
        // Where the IP header says 0, what was captured tells.
        size_t size = ip.PayloadLen() > 0 ? std::min<size_t>(ip.PayloadLen(), captured) : captured;
        if ( size >= header_bytes )
            add_datagram(*kept, ip, ip.Payload() + header_bytes, size - header_bytes);
    }

    KeptPtr kept;
    bool keeps_datagrams;
    bool awaits_stream;
};

// Those of other protocols Zeek gives to analyzers alone.
bool attach_tap(zeek::Connection* conn, const KeptPtr& kept) {
    if ( conn->ConnTransport() == TRANSPORT_UNKNOWN )
        return false;
    conn->GetSessionAdapter()->AddTapAnalyzer(std::make_unique<PacketsTap>(conn, kept));
    return true;
}

#else

bool attach_tap(zeek::Connection* conn, const KeptPtr& kept) {
    if ( keeps_content_of(*conn, TRANSPORT_TCP) )
        attach_stream(conn, kept);
    return false;
}

#endif

void attach_analyzer(zeek::Connection* conn, const KeptPtr& kept) {
    auto* analyzer = new PacketsAnalyzer(conn, kept);
    // TCP gives its other children the stream instead of packets.
    if ( conn->ConnTransport() == TRANSPORT_TCP )
        static_cast<zeek::packet_analysis::TCP::TCPSessionAdapter*>(conn->GetSessionAdapter())
            ->AddChildPacketAnalyzer(analyzer);
    else
        conn->GetSessionAdapter()->AddChildAnalyzer(analyzer);
}

// Options and the site's policy, asked only where there are any.
bool is_wanted(zeek::Connection* conn) {
    static const auto observe = zeek::id::find_func("Tapline::observe");
    static const auto is_wanted = zeek::id::find_func("Tapline::is_wanted");
    if ( ! is_wanted || ! (settings.options.filtering || (observe && observe->HasBodies())) )
        return true;
    try {
        auto result = is_wanted->Invoke(conn->GetVal());
        return ! result || result->AsBool();
    } catch ( zeek::InterpreterException& ) {
        // Zeek reported it.
        return true;
    }
}

} // namespace

std::array<zeek::plugin::Component*, 2> make_components() {
    packets_component = new zeek::analyzer::Component("TAPLINE_PACKETS", nullptr);
    stream_component = new zeek::analyzer::Component("TAPLINE_STREAM", nullptr);
    return {packets_component, stream_component};
}

void attach(zeek::Connection* conn) {
    if ( ! settings.is_configured )
        return;
    if ( ! is_wanted(conn) ) {
        static const auto left_out = zeek::make_intrusive<Kept>();
        keep(*conn->GetVal(), left_out);
        return;
    }
    source_link_type();
    auto kept = zeek::make_intrusive<Kept>(conn);
    if ( ! attach_tap(conn, kept) )
        attach_analyzer(conn, kept);
}

Kept* kept_by(zeek::Connection& conn) {
    auto* analyzer = conn.GetSessionAdapter()->FindChild(packets_component->Tag());
    return analyzer ? static_cast<PacketsAnalyzer*>(analyzer)->GetKept() : nullptr;
}

// Bytes of a frame up to the end of its IP packet, a fragment, while Zeek gives the frame the length that it would have with
// the datagram that the fragment completed.
uint32_t fragment_bytes(const zeek::Packet& packet) {
    if ( packet.ip_hdr->TotalLen() > packet.cap_len )
        return 0;
    uint32_t before_ip = packet.cap_len - packet.ip_hdr->TotalLen();
    const uint8_t* ip = packet.data + before_ip;
    auto length = [ip](int at) { return static_cast<uint32_t>(ip[at] << 8 | ip[at + 1]); };
    return before_ip + (ip[0] >> 4 == 4 ? length(2) : 40 + length(4));
}

bool current_frame(Frame& frame) {
    zeek::iosource::PktSrc* source = zeek::iosource_mgr->GetPktSrc();
    const zeek::Packet* packet = nullptr;
    if ( ! source || ! source->GetCurrentPacket(&packet) || ! packet || ! packet->data )
        return false;
    frame.data = packet->data;
    frame.captured = packet->cap_len;
    frame.wire = packet->len;
    if ( packet->ip_hdr && packet->ip_hdr->Reassembled() )
        frame.captured = frame.wire = fragment_bytes(*packet);
    frame.time_us = static_cast<uint64_t>(packet->ts.tv_sec) * 1000000 + static_cast<uint64_t>(packet->ts.tv_usec);
    frame.link_type = source->LinkType();
    return true;
}

int source_link_type() {
    // Asked at the first packet: when Zeek ends, its source is gone before the last flows are published.
    static int link_type = -1;
    if ( link_type >= 0 )
        return link_type;
    if ( zeek::iosource::PktSrc* source = zeek::iosource_mgr->GetPktSrc() ) {
        link_type = source->LinkType();
        // Zeek's own reader of pcapng, since 8.2, has a link type for each packet.
        if ( const zeek::Packet* packet; link_type < 0 && source->GetCurrentPacket(&packet) )
            link_type = static_cast<int>(packet->link_type);
    }
    return link_type;
}

void add_packet(Kept& kept, const zeek::IP_Hdr& ip) {
    early.Packet();
    Packet packet;
    packet.is_v4 = ip.IP4_Hdr() != nullptr;
    packet.header = packet.is_v4 ? reinterpret_cast<const uint8_t*>(ip.IP4_Hdr())
                                 : reinterpret_cast<const uint8_t*>(ip.IP6_Hdr());
    packet.transport = ip.Payload();
    packet.is_reassembled = ip.Reassembled();
    packet.protocol = ip.NextProto();
    packet.header_bytes = ip.HdrLen();
    packet.ip_bytes = ip.TotalLen();
    packet.payload_bytes = ip.PayloadLen();
    // Only these need to know.
    if ( ! kept.is_tunneled && (kept.flow.WantsHead() || packet.ip_bytes == 0) )
        kept.is_tunneled = is_in_tunnel(*kept.conn);
    LazyFrame frame(current_frame);
    act_on(kept, kept.flow.AddPacket(packet, settings.options, kept.is_tunneled, frame));
}

} // namespace tapline
