// Batches of flows, packed as the README of the package says at Tapline::flows, and flows as records of the scripts.

#pragma once

#include <zeek/Val.h>

#include "connection.h"
#include "kept.h"

namespace tapline {

// Flows of a batch at most, and their bytes before they are compressed.
constexpr uint64_t max_batch_flows = 64;
constexpr size_t max_batch_bytes = 1048576;

// Packs a flow behind those of the shard that wait and says how many wait now. A flow beyond `max_batch_flows` is not packed:
// those before it must be taken first.
uint64_t pack(uint64_t shard, const ConnectionFacts& facts, const Kept& kept, bool is_final, HeadsKind heads_kind,
              std::string_view server_name);

// The shard's batch as a Tapline::Batch, compressed, in base64; a new one begins.
zeek::RecordValPtr take(uint64_t shard);

// Shards of which flows wait, in order.
zeek::VectorValPtr waiting_shards();

// A Tapline::Flow, but for what the plugin does not know: version, sensor, number, server name.
zeek::RecordValPtr flow_record(const ConnectionFacts& facts, const Kept& kept, bool is_final, HeadsKind heads_kind);

// Forgets what waits.
void drop_batches();

} // namespace tapline
