// What is collected of one connection, bounded whatever its length: payload lengths, content, packet heads. Knows nothing
// of Zeek: what it is given are pointers to what was captured and what Zeek found in it.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tapline {

// Payload lengths kept; the counts of packets go on.
constexpr size_t max_payload_lengths = 254;

// Tokens that heads may fill, and what each costs beside its bytes.
constexpr uint32_t heads_token_budget = 510;
constexpr uint32_t head_token_cost = 10;

enum class HeadsKind : uint8_t { None = 0, Header = 1, Full = 2 };

struct Options {
    uint32_t content_bytes = 0; // kept each way, at most 256
    HeadsKind heads = HeadsKind::None;
    uint64_t early_packets = 0; // 0: not by this rule
    uint64_t early_bytes = 0;
    double early_interval = 0.0; // seconds
    bool publish_without_payload = false;
    bool filtering = false; // options leave some connections out
};

// A packet of a connection, as Zeek's IP analyzer read it; a reassembled datagram is one.
struct Packet {
    const uint8_t* header;    // of IP
    const uint8_t* transport; // TCP: 20 bytes at least, UDP and ICMP: 8
    bool is_v4;
    bool is_reassembled;
    uint8_t protocol;
    uint16_t header_bytes;  // IPv6 extension headers among them
    uint32_t ip_bytes;      // by the IP header; 0 with segmentation offload
    uint16_t payload_bytes; // by the IP header

    const uint8_t* Source() const { return header + (is_v4 ? 12 : 8); }
    size_t AddressBytes() const { return is_v4 ? 4 : 16; }
};

// The frame that is being processed, as captured: of a packet in a tunnel, the outermost.
struct Frame {
    const uint8_t* data;
    uint32_t captured;
    uint32_t wire;
    uint64_t time_us;
    int link_type; // libpcap's
};

// The current frame, which takes some looking up: most packets of a flow are told without.
class LazyFrame {
public:
    using Getter = bool (*)(Frame& frame);

    explicit LazyFrame(Getter getter) : getter(getter) {}

    // Null where there is none.
    const Frame* Get() {
        if ( state == State::Unasked )
            state = getter(frame) ? State::There : State::Missing;
        return state == State::There ? &frame : nullptr;
    }

private:
    enum class State : uint8_t { Unasked, There, Missing };

    Getter getter;
    State state = State::Unasked;
    Frame frame;
};

struct Head {
    uint64_t gap_us;
    uint16_t bytes;
};

// Content of one direction.
struct Content {
    std::vector<uint8_t> bytes;
    uint64_t next_seq = 0; // of a TCP stream; 0 before it starts
    bool is_done = false;
    bool stopped_at_gap = false;
};

// How far a flow has come, by which it can be published as it was. Everything that it keeps is only added to.
struct Extent {
    uint64_t ahead = 0;
    uint64_t back = 0;
    uint16_t lengths = 0;
    uint16_t heads = 0;
    uint16_t head_bytes = 0;
    std::array<uint16_t, 2> content{};

    bool operator==(const Extent& other) const = default;
};

class Flow {
public:
    // What a packet or its content made due.
    enum Signal : uint8_t {
        Nothing = 0,
        FirstPayload = 1, // the interval up to the early publication starts
        Due = 2,          // the early publication is due
    };

    // Counts a packet and keeps its length and head as long as there is room.
    Signal AddPacket(const Packet& packet, const Options& options, bool is_tunneled, LazyFrame& lazy_frame);

    // Keeps content of direction `side`, 0 for whoever was the originator when the connection began.
    Signal AddContent(int side, const uint8_t* data, size_t size, const Options& options);

    // The same of a TCP stream, whose content ends at its first gap. `seq` is where `data` begin in it.
    Signal AddStream(int side, uint64_t seq, const uint8_t* data, size_t size, const Options& options);

    bool HasAllContent() const { return content[0].is_done && content[1].is_done; }
    // Whether the next packet's head will be kept.
    bool WantsHead() const { return ! has_begun || heads_left > 0; }

    uint64_t PayloadPackets() const { return ahead + back; }

    // Differs as soon as there is more that a verdict may depend on.
    Extent CurrentExtent() const;

    // Sender of the first packet, by its IP header; of IPv4 the first four bytes.
    std::array<uint8_t, 16> first_address{};
    uint16_t first_port = 0; // or the ICMP type; looked at where both endpoints are one host
    bool is_same_host = false;

    // Payload packets from the first packet's sender, and back.
    uint64_t ahead = 0;
    uint64_t back = 0;
    std::vector<int32_t> lengths; // positive from the first packet's sender

    std::array<Content, 2> content;

    std::vector<uint8_t> head_bytes; // end to end
    std::vector<Head> heads;

    bool early_due = false;

private:
    void Begin(const Packet& packet, const Options& options);
    bool IsAhead(const Packet& packet) const;
    void AddHead(const Packet& packet, uint32_t payload, const Options& options, bool is_tunneled, LazyFrame& lazy_frame);

    bool has_begun = false;
    uint16_t heads_left = 0; // tokens
    uint64_t last_head_us = 0;
};

} // namespace tapline
