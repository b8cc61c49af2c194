// Compression and text of a batch: zlib's format (RFC 1950, 1951) and base64 (RFC 4648). Knows nothing of Zeek.
//
// zlib's own deflate takes five times as many instructions for batches of some thousand bytes. Here each place is looked up once,
// and the code is the fixed one of RFC 1951, which on packed flows is 4 % longer than one made for each batch.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace tapline {

class Deflater {
public:
    // Bytes that a stream takes at most.
    static constexpr size_t Bound(size_t bytes) { return bytes + bytes / 8 + 32; }

    // Writes `data`, fewer than 2^30 bytes, to `out` as one stream of zlib; its size.
    size_t Stream(uint8_t* out, std::span<const uint8_t> data);

private:
    static constexpr int place_bits = 12;

    uint8_t* Block(uint8_t* out, std::span<const uint8_t> data);

    // Where four bytes were last seen, by their hash, counted on from stream to stream: nothing is cleared between them.
    std::array<uint32_t, 1 << place_bits> places{};
    uint32_t here = 0;
};

constexpr size_t base64_size(size_t bytes) { return (bytes + 2) / 3 * 4; }

// Writes base64_size(data.size()) characters to `out`.
void base64(char* out, std::span<const uint8_t> data);

} // namespace tapline
