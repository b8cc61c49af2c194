#include "names.h"

#include <utility>

namespace tapline {

Names names;

void Names::Remember(std::string_view uid, std::string_view name) {
    if ( recent.size() >= most )
        older = std::exchange(recent, {});
    recent.insert_or_assign(std::string(uid), name);
}

std::string_view Names::Of(std::string_view uid) const {
    for ( const Table* table : {&recent, &older} )
        if ( auto found = table->find(uid); found != table->end() )
            return found->second;
    return {};
}

} // namespace tapline
