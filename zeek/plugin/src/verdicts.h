// Verdicts on flows in lines become the records that are logged.

#pragma once

#include <zeek/Val.h>

#include <string_view>

namespace tapline {

// A vector of Tapline::Info. Lines that are none, or have what cannot be a flow's port, are left out.
zeek::VectorValPtr infos_of_lines(std::string_view lines, const zeek::StringValPtr& service);

} // namespace tapline
