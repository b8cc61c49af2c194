##! Batches of flows in script, as the README of the package says at `Tapline::flows`, from the state that the extraction in
##! script keeps. They are text, since no function of Zeek writes numbers as bytes: each flow is made by one call.

@load base/protocols/conn
@load ./state
@load ./heads

module Tapline;

# Longest text of services.
const max_service = 128;

# Flows that wait, by shard.
type Texts: vector of string;
global batches: table[count] of Texts;

const heads_kinds: table[string] of count = { ["none"] = 0, ["header"] = 1, ["full"] = 2 };
const heads_kind = heads_kinds[heads];

# Calls cost more than what they do here, so the common cases are looked at in place.
function flow_text(c: connection, final: bool, server_name: string): string
	{
	local st = c$tapline;
	local id = c$id;
	local orig = c$orig;
	local resp = c$resp;
	local service = |c$service| > 0 ? to_lower(join_string_set(c$service, ",")) : "";
	if ( |service| > max_service )
		service = service[0:max_service];
	local straight = st$same_host ? sent_by_orig(c) : st$first_h == id$orig_h;
	return cat_sep(",", "", final, straight, id$orig_h, id$resp_h, c$uid,
	    final && c?$conn && c$conn?$conn_state ? c$conn$conn_state : "", server_name,
	    encode_base64(cat(st$heads, st$orig_bytes, st$resp_bytes, service)),
	    id$proto, raw_ip ? link_type_byte(c) : link_byte, heads_kind, port_to_count(id$orig_p), port_to_count(id$resp_p),
	    double_to_count(time_to_double(c$start_time) * 1000000.0),
	    c$duration > 0sec ? double_to_count(interval_to_double(c$duration) * 1000000.0) : 0,
	    orig?$num_pkts ? orig$num_pkts : 0, resp?$num_pkts ? resp$num_pkts : 0,
	    orig?$num_bytes_ip ? orig$num_bytes_ip : 0, resp?$num_bytes_ip ? resp$num_bytes_ip : 0,
	    st$ahead, st$back, |st$orig_bytes|, |st$resp_bytes|, st$lengths, st$head_numbers);
	}

# Packs a flow behind those of the shard that wait; how many wait now.
function pack(c: connection, final: bool, shard: count, server_name: string): count
	{
	if ( shard !in batches )
		batches[shard] = Texts();
	local texts = batches[shard];
	texts += flow_text(c, final, server_name);
	return |texts|;
	}

function take(shard: count): Batch
	{
	local batch = Batch($flows=|batches[shard]|, $packed="|" + join_string_vec(batches[shard], "|"));
	delete batches[shard];
	return batch;
	}

function waiting_shards(): vector of count
	{
	local shards_waiting: vector of count = vector();
	for ( shard in batches )
		shards_waiting += shard;
	return sort(shards_waiting);
	}
