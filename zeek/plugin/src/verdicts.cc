#include "verdicts.h"

#include <zeek/IPAddr.h>
#include <zeek/RunState.h>
#include <zeek/Type.h>
#include <zeek/Var.h>

#include <array>
#include <charconv>
#include <optional>
#include <string>

namespace tapline {

namespace {

// A line's fields in their order.
enum Field { Uid, CommunityId, OrigH, OrigP, RespH, RespP, Proto, Nearest, Confidence, Unknown, Final, Model, Version, Fields };

using Line = std::array<std::string_view, Fields>;

// Where Tapline::Info has what.
struct Places {
    zeek::RecordTypePtr info = zeek::id::find_type<zeek::RecordType>("Tapline::Info");
    int ts = info->FieldOffset("ts"), uid = info->FieldOffset("uid"), id = info->FieldOffset("id"),
        proto = info->FieldOffset("proto"), community_id = info->FieldOffset("community_id"),
        label = info->FieldOffset("label"), nearest = info->FieldOffset("nearest"),
        confidence = info->FieldOffset("confidence"), unknown = info->FieldOffset("unknown"),
        final = info->FieldOffset("final"), model = info->FieldOffset("model"),
        version = info->FieldOffset("model_version"), service = info->FieldOffset("service");
};

// Text that many lines have one after the other, made once.
class Repeated {
public:
    const zeek::StringValPtr& Of(std::string_view given) {
        if ( ! val || text != given ) {
            text = given;
            val = zeek::make_intrusive<zeek::StringVal>(text);
        }
        return val;
    }

private:
    std::string text;
    zeek::StringValPtr val;
};

// What is before the next `mark`, which is passed over, and less of the rest.
std::string_view take_until(std::string_view& rest, char mark) {
    size_t end = rest.find(mark);
    std::string_view taken = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    return taken;
}

std::optional<Line> split(std::string_view text) {
    Line line;
    for ( size_t i = 0; i + 1 < Fields; ++i ) {
        if ( text.find('|') == std::string_view::npos )
            return std::nullopt;
        line[i] = take_until(text, '|');
    }
    line[Version] = text;
    return text.find('|') == std::string_view::npos ? std::optional(line) : std::nullopt;
}

std::optional<uint16_t> port_of(std::string_view text) {
    uint16_t port = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    return error == std::errc{} && end == text.data() + text.size() ? std::optional(port) : std::nullopt;
}

std::optional<zeek::IPAddr> address_of(std::string_view text) {
    in6_addr address;
    if ( ! zeek::IPAddr::ConvertString(std::string(text).c_str(), &address) )
        return std::nullopt;
    return zeek::IPAddr(address);
}

TransportProto transport_of(std::string_view proto) {
    return proto == "tcp"    ? TRANSPORT_TCP
           : proto == "udp"  ? TRANSPORT_UDP
           : proto == "icmp" ? TRANSPORT_ICMP
                             : TRANSPORT_UNKNOWN;
}

zeek::RecordValPtr id_of(const Line& line) {
    auto orig_h = address_of(line[OrigH]), resp_h = address_of(line[RespH]);
    auto orig_p = port_of(line[OrigP]), resp_p = port_of(line[RespP]);
    if ( ! orig_h || ! resp_h || ! orig_p || ! resp_p )
        return nullptr;
    TransportProto transport = transport_of(line[Proto]);
    auto id = zeek::make_intrusive<zeek::RecordVal>(zeek::id::conn_id);
    id->Assign(0, zeek::make_intrusive<zeek::AddrVal>(*orig_h));
    id->Assign(1, zeek::val_mgr->Port(*orig_p, transport));
    id->Assign(2, zeek::make_intrusive<zeek::AddrVal>(*resp_h));
    id->Assign(3, zeek::val_mgr->Port(*resp_p, transport));
    return id;
}

} // namespace

zeek::VectorValPtr infos_of_lines(std::string_view lines, const zeek::StringValPtr& service) {
    static const Places at;
    static const auto unknown_label = zeek::make_intrusive<zeek::StringVal>("unknown");
    Repeated proto, nearest, model, version;
    auto infos = zeek::make_intrusive<zeek::VectorVal>(zeek::id::find_type<zeek::VectorType>("Tapline::Infos"));
    while ( ! lines.empty() ) {
        auto line = split(take_until(lines, ';'));
        auto id = line ? id_of(*line) : nullptr;
        if ( ! id )
            continue;
        bool is_unknown = (*line)[Unknown] == "T";
        const auto& nearest_val = nearest.Of((*line)[Nearest]);
        auto info = zeek::make_intrusive<zeek::RecordVal>(at.info);
        info->AssignTime(at.ts, zeek::run_state::network_time);
        info->Assign(at.uid, (*line)[Uid]);
        info->Assign(at.id, std::move(id));
        info->Assign(at.proto, proto.Of((*line)[Proto]));
        info->Assign(at.community_id, (*line)[CommunityId]);
        info->Assign(at.label, is_unknown ? unknown_label : nearest_val);
        info->Assign(at.nearest, nearest_val);
        info->Assign(at.confidence, strtod(std::string((*line)[Confidence]).c_str(), nullptr));
        info->Assign(at.unknown, is_unknown);
        info->Assign(at.final, (*line)[Final] == "T");
        info->Assign(at.model, model.Of((*line)[Model]));
        info->Assign(at.version, version.Of((*line)[Version]));
        info->Assign(at.service, service);
        infos->Append(std::move(info));
    }
    return infos;
}

} // namespace tapline
