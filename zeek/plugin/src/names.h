// The names of servers where verdicts are logged: of the flows that were published of late, by uid. Knows nothing of Zeek.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>

namespace tapline {

// Keeps `most` names at least, twice as many at most: of two tables the older one is forgotten when the newer one is full.
class Names {
public:
    size_t most = 0;

    void Remember(std::string_view uid, std::string_view name);

    // Empty where none is known.
    std::string_view Of(std::string_view uid) const;

private:
    // Tables are searched by what they were not made of, without a copy.
    struct Hash : std::hash<std::string_view> {
        using is_transparent = void;
    };
    using Table = std::unordered_map<std::string, std::string, Hash, std::equal_to<>>;

    Table recent, older;
};

extern Names names;

} // namespace tapline
