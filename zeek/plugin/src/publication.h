// Publishes flows, early and final: counts what becomes of them, runs the scripts' hooks where these have bodies, and packs
// flows into the batch of their shard where the scripts take batches.

#pragma once

#include <zeek/Val.h>

#include "flow.h"

namespace tapline {

// Finds what the scripts declare, once they are read. False where something is missing.
bool find_publication();

// A flow whose early publication is due, unless it was made already, its connection is gone, or its deadline alone makes it due
// while the connection is about to end.
void publish_early(const zeek::RecordValPtr& connection);

// What becomes of a connection that Zeek removed.
void publish_final(const zeek::RecordValPtr& connection);

} // namespace tapline
