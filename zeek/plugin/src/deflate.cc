#include "deflate.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace tapline {

namespace {

// Bits that go out together, the first one lowest.
struct Code {
    uint32_t bits;
    uint32_t count;
};

// RFC 1951 writes codes from their highest bit on.
constexpr uint32_t reversed(uint32_t code, uint32_t count) {
    uint32_t out = 0;
    for ( uint32_t i = 0; i < count; ++i )
        out |= (code >> i & 1) << (count - 1 - i);
    return out;
}

// 3.2.6: literals, the end and lengths.
constexpr Code fixed_code(uint32_t symbol) {
    if ( symbol < 144 )
        return {reversed(0x30 + symbol, 8), 8};
    if ( symbol < 256 )
        return {reversed(0x190 + symbol - 144, 9), 9};
    if ( symbol < 280 )
        return {reversed(symbol - 256, 7), 7};
    return {reversed(0xc0 + symbol - 280, 8), 8};
}

constexpr uint32_t least_length = 4; // deflate has 3 as well, which saves next to nothing
constexpr uint32_t most_length = 258;
constexpr uint32_t most_distance = 32768;

// 3.2.5: steps of a scale of lengths or distances, whose extra bits grow by one each `in_a_group` steps.
constexpr uint32_t extra_bits(uint32_t step, uint32_t in_a_group) { return step < 2 * in_a_group ? 0 : step / in_a_group - 1; }

constexpr auto literal_codes = [] {
    std::array<Code, 256> codes{};
    for ( uint32_t i = 0; i < codes.size(); ++i )
        codes[i] = fixed_code(i);
    return codes;
}();

// A length with its extra bits.
constexpr auto length_codes = [] {
    std::array<Code, most_length + 1> codes{};
    uint32_t length = 3;
    for ( uint32_t step = 0; step < 28; ++step ) {
        Code code = fixed_code(257 + step);
        uint32_t extra = extra_bits(step, 4);
        for ( uint32_t i = 0; i < 1u << extra && length < most_length; ++i )
            codes[length++] = {code.bits | i << code.count, code.count + extra};
    }
    codes[most_length] = fixed_code(285);
    return codes;
}();

// A distance with its extra bits.
Code distance_code(uint32_t distance) {
    uint32_t from_0 = distance - 1;
    uint32_t extra = from_0 < 4 ? 0 : std::bit_width(from_0) - 2;
    uint32_t step = 2 * extra + (from_0 >> extra);
    static constexpr auto steps = [] {
        std::array<uint8_t, 30> codes{};
        for ( uint32_t i = 0; i < codes.size(); ++i )
            codes[i] = static_cast<uint8_t>(reversed(i, 5));
        return codes;
    }();
    return {steps[step] | (from_0 & ((1u << extra) - 1)) << 5, 5 + extra};
}

template<typename T>
T load(const uint8_t* data) {
    T value;
    memcpy(&value, data, sizeof value);
    if constexpr ( std::endian::native == std::endian::big ) {
        T little = 0;
        for ( size_t i = 0; i < sizeof value; ++i )
            little = little << 8 | (value >> 8 * i & 0xff);
        return little;
    }
    return value;
}

// Eight bytes, the first one highest.
uint64_t load_big(const uint8_t* data) { return __builtin_bswap64(load<uint64_t>(data)); }

void store(uint8_t* out, uint64_t value) {
    for ( int i = 0; i < 8; ++i )
        out[i] = static_cast<uint8_t>(value >> 8 * i);
}

// Bits to bytes, of which there must be room for 8 more than are written.
class BitWriter {
public:
    explicit BitWriter(uint8_t* out) : out(out) {}

    // At most 56 bits between two calls of Flush().
    void Put(Code code) {
        bits |= static_cast<uint64_t>(code.bits) << count;
        count += code.count;
    }

    void Flush() {
        store(out, bits);
        out += count / 8;
        bits >>= count & ~7u;
        count &= 7;
    }

    // Any number of literals. What is written may be anything for all that the compiler knows, this writer too: a copy stays in
    // registers.
    void PutLiterals(const uint8_t* from, const uint8_t* to) {
        BitWriter copy = *this;
        for ( ; to - from >= 4; from += 4 ) {
            for ( int i = 0; i < 4; ++i )
                copy.Put(literal_codes[from[i]]);
            copy.Flush();
        }
        for ( ; from < to; ++from )
            copy.Put(literal_codes[*from]);
        copy.Flush();
        *this = copy;
    }

    // The place behind the last byte.
    uint8_t* End() {
        Flush();
        return out + (count > 0);
    }

private:
    uint8_t* out;
    uint64_t bits = 0;
    uint32_t count = 0;
};

// Bytes from `a` and from `b` on that are the same, at most `most` and none from `end` on. `a` comes before `b`.
uint32_t common_bytes(const uint8_t* a, const uint8_t* b, const uint8_t* end, uint32_t most) {
    most = std::min<size_t>(most, end - b);
    uint32_t n = 0;
    for ( ; n + 8 <= most; n += 8 )
        if ( uint64_t differing = load<uint64_t>(a + n) ^ load<uint64_t>(b + n) )
            return n + std::countr_zero(differing) / 8;
    while ( n < most && a[n] == b[n] )
        ++n;
    return n;
}

// Adler-32 (RFC 1950, 8.2). Eight bytes at a time are added up in lanes of 16 bits, as often as these can hold.
uint32_t checksum(std::span<const uint8_t> data) {
    constexpr uint32_t modulus = 65521;
    constexpr uint64_t every_other = 0x00ff00ff00ff00ff;
    constexpr size_t most_at_once = 22 * 8; // 255 * (21 * 22 / 2) < 2^16
    uint32_t a = 1, b = 0;
    while ( ! data.empty() ) {
        auto part = data.first(std::min(most_at_once, data.size()));
        const size_t eights = part.size() / 8;
        // Sums of the even and of the odd bytes, and of what these sums were before each eight bytes.
        uint64_t even = 0, odd = 0, even_before = 0, odd_before = 0;
        for ( size_t i = 0; i < eights; ++i ) {
            uint64_t eight = load<uint64_t>(part.data() + 8 * i);
            even_before += even;
            odd_before += odd;
            even += eight & every_other;
            odd += eight >> 8 & every_other;
        }
        b += 8 * eights * a;
        for ( int lane = 0; lane < 4; ++lane, even >>= 16, odd >>= 16, even_before >>= 16, odd_before >>= 16 ) {
            auto sum = [](uint64_t lanes) { return static_cast<uint32_t>(lanes & 0xffff); };
            b += 8 * (sum(even_before) + sum(odd_before)) + (8 - 2 * lane) * sum(even) + (7 - 2 * lane) * sum(odd);
            a += sum(even) + sum(odd);
        }
        for ( uint8_t byte : part.subspan(8 * eights) ) {
            a += byte;
            b += a;
        }
        a %= modulus;
        b %= modulus;
        data = data.subspan(part.size());
    }
    return b << 16 | a;
}

} // namespace

// One block of fixed codes. Of each four bytes the last place that they were seen at is tried, and no other.
uint8_t* Deflater::Block(uint8_t* out, std::span<const uint8_t> data) {
    const uint8_t* begin = data.data();
    const uint8_t* end = begin + data.size();
    const uint8_t* literals = begin;
    // What came before is too far away; so is what never was.
    if ( here > UINT32_MAX / 2 ) {
        places.fill(0);
        here = 0;
    }
    const uint32_t start = here += most_distance + 1;
    BitWriter writer(out);
    writer.Put({3, 3}); // the last block, of fixed codes
    writer.Flush();
    const size_t places_to_look_at = data.size() < least_length ? 0 : data.size() - least_length + 1;
    for ( size_t i = 0; i < places_to_look_at; ) {
        uint32_t four = load<uint32_t>(begin + i);
        uint32_t& place = places[four * 2654435761u >> (32 - place_bits)];
        uint32_t distance = start + static_cast<uint32_t>(i) - place;
        place += distance;
        if ( distance > most_distance || load<uint32_t>(begin + i - distance) != four ) {
            ++i;
            continue;
        }
        const uint8_t* at = begin + i;
        writer.PutLiterals(literals, at);
        uint32_t length = least_length +
                          common_bytes(at - distance + least_length, at + least_length, end, most_length - least_length);
        writer.Put(length_codes[length]);
        writer.Put(distance_code(distance));
        writer.Flush();
        i += length;
        literals = begin + i;
    }
    here = start + static_cast<uint32_t>(data.size());
    writer.PutLiterals(literals, end);
    writer.Put(fixed_code(256));
    return writer.End();
}

size_t Deflater::Stream(uint8_t* out, std::span<const uint8_t> data) {
    uint8_t* at = out;
    *at++ = 0x78; // deflate, window of 32 KiB
    *at++ = 0x01; // fastest, and what makes both a multiple of 31
    at = Block(at, data);
    uint32_t sum = checksum(data);
    for ( int shift = 24; shift >= 0; shift -= 8 )
        *at++ = static_cast<uint8_t>(sum >> shift);
    return at - out;
}

void base64(char* out, std::span<const uint8_t> data) {
    static constexpr char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // Two characters for each 12 bits.
    static constexpr auto pairs = [] {
        std::array<std::array<char, 2>, 4096> made{};
        for ( size_t i = 0; i < made.size(); ++i )
            made[i] = {alphabet[i >> 6], alphabet[i & 63]};
        return made;
    }();
    auto put = [&out](uint32_t twelve) {
        memcpy(out, pairs[twelve].data(), 2);
        out += 2;
    };
    size_t i = 0;
    for ( ; i + 8 <= data.size(); i += 6 ) {
        uint64_t eight = load_big(&data[i]);
        put(eight >> 52);
        put(eight >> 40 & 4095);
        put(eight >> 28 & 4095);
        put(eight >> 16 & 4095);
    }
    for ( ; i + 3 <= data.size(); i += 3 ) {
        uint32_t three = data[i] << 16 | data[i + 1] << 8 | data[i + 2];
        put(three >> 12);
        put(three & 4095);
    }
    if ( size_t left = data.size() - i ) {
        uint32_t three = data[i] << 16 | (left > 1 ? data[i + 1] << 8 : 0);
        put(three >> 12);
        *out++ = left > 1 ? alphabet[three >> 6 & 63] : '=';
        *out++ = '=';
    }
}

} // namespace tapline
