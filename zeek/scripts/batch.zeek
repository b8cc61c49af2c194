##! Batches of flows in script, packed as the README of the package says at `Tapline::flows`, from the state that the
##! extraction in script keeps. No function of Zeek writes numbers as bytes, so they are looked up in a table of all bytes.

@load base/protocols/conn
@load ./state
@load ./heads

module Tapline;

# Bytes of a flow without its variable parts.
const fixed_bytes = 120;

# Longest text of services.
const max_service = 128;

# Packed flows that wait, by shard.
type Packed: vector of string;
global batches: table[count] of Packed;

function all_octets(): vector of string
	{
	local octets: vector of string = vector();
	while ( |octets| < 256 )
		octets += hexstr_to_bytestring(fmt("%02x", |octets|));
	return octets;
	}

# Each byte by its value, and runs of zeros.
global octet = all_octets();
const zeros_2 = "\x00\x00";
const zeros_4 = zeros_2 + zeros_2;
const zeros_6 = zeros_4 + zeros_2;
const zeros_12 = zeros_6 + zeros_6;

const heads_kinds: table[string] of string = { ["none"] = "\x00", ["header"] = "\x01", ["full"] = "\x02" };

# The number in 4 and in 8 bytes.
function u32(n: count): string
	{
	return cat(octet[n & 0xff], octet[(n / 0x100) & 0xff], octet[(n / 0x10000) & 0xff], octet[(n / 0x1000000) & 0xff]);
	}

# Calls cost more than what they do here, so the bytes are looked up in place.
function u64(n: count): string
	{
	if ( n < 0x10000 )
		return cat(octet[n & 0xff], octet[n / 0x100], zeros_6);
	if ( n < 0x100000000 )
		return cat(octet[n & 0xff], octet[(n / 0x100) & 0xff], octet[(n / 0x10000) & 0xff], octet[n / 0x1000000], zeros_4);
	local high = n / 0x100000000;
	return cat(octet[n & 0xff], octet[(n / 0x100) & 0xff], octet[(n / 0x10000) & 0xff], octet[(n / 0x1000000) & 0xff],
	    octet[high & 0xff], octet[(high / 0x100) & 0xff], octet[(high / 0x10000) & 0xff], octet[high / 0x1000000]);
	}

# The 4 bytes of each length of a common size, from the originator and from the responder.
function common_lengths(from_orig: bool): vector of string
	{
	local lengths: vector of string = vector();
	while ( |lengths| <= 1500 )
		lengths += u32(from_orig ? |lengths| : 0x100000000 - |lengths|);
	return lengths;
	}

global orig_lengths = common_lengths(T);
global resp_lengths = common_lengths(F);

# Payload lengths, negative from the responder.
function lengths_bytes(st: State, straight: bool): string
	{
	local ahead = straight ? orig_lengths : resp_lengths;
	local back = straight ? resp_lengths : orig_lengths;
	local packed: vector of string = vector();
	for ( _, n in st$lengths )
		{
		if ( n > 1500 || n < -1500 )
			packed += u32((n > 0) == straight ? |n| : 0x100000000 - |n|);
		else
			packed += n > 0 ? ahead[n] : back[-n];
		}
	return join_string_vec(packed, "");
	}

# Gaps before heads, then the sizes of the heads.
function heads_bytes(st: State): string
	{
	local gaps = "";
	local sizes = "";
	for ( i, size in st$head_sizes )
		{
		gaps += u64(st$head_gaps_us[i]);
		sizes += octet[size & 0xff] + octet[size / 0x100];
		}
	return gaps + sizes;
	}

# Network byte order, in 16 bytes.
function address_bytes(a: addr): string
	{
	if ( is_v6_addr(a) )
		return hexstr_to_bytestring(address_hex(a));
	local n = addr_to_counts(a)[0];
	return cat(octet[n / 0x1000000], octet[(n / 0x10000) & 0xff], octet[(n / 0x100) & 0xff], octet[n & 0xff], zeros_12);
	}

function packed_flow(c: connection, final: bool, server_name: string): string
	{
	local st = c$tapline;
	local id = c$id;
	local straight = sent_by_orig(c);
	local service = |c$service| > 0 ? to_lower(join_string_set(c$service, ",")) : "";
	if ( |service| > max_service )
		service = service[0:max_service];
	local conn_state = final && c?$conn && c$conn?$conn_state ? c$conn$conn_state : "";
	local orig_p = port_to_count(id$orig_p);
	local resp_p = port_to_count(id$resp_p);
	local lengths = lengths_bytes(st, straight);
	local numbers = |st$head_sizes| > 0 ? heads_bytes(st) : "";
	local texts = cat(c$uid, service, conn_state, server_name);
	local size = fixed_bytes + |lengths| + |numbers| + |st$heads| + |st$orig_bytes| + |st$resp_bytes| + |texts|;
	return cat(
	    octet[size & 0xff], octet[size / 0x100], zeros_2, octet[(final ? 1 : 0) + (is_v6_addr(id$orig_h) ? 2 : 0)],
	    octet[id$proto], octet[link_type_byte(c)], heads_kinds[heads],
	    octet[orig_p & 0xff], octet[orig_p / 0x100], octet[resp_p & 0xff], octet[resp_p / 0x100],
	    u64(double_to_count(time_to_double(c$start_time) * 1000000.0)),
	    u64(c$duration > 0sec ? double_to_count(interval_to_double(c$duration) * 1000000.0) : 0),
	    u64(c$orig?$num_pkts ? c$orig$num_pkts : 0), u64(c$resp?$num_pkts ? c$resp$num_pkts : 0),
	    u64(c$orig?$num_bytes_ip ? c$orig$num_bytes_ip : 0), u64(c$resp?$num_bytes_ip ? c$resp$num_bytes_ip : 0),
	    u64(straight ? st$ahead : st$back), u64(straight ? st$back : st$ahead),
	    address_bytes(id$orig_h), address_bytes(id$resp_h),
	    octet[|c$uid|], octet[|service|], octet[|conn_state|], octet[|server_name|],
	    octet[|st$lengths|], octet[|st$head_sizes|],
	    octet[|st$orig_bytes| & 0xff], octet[|st$orig_bytes| / 0x100],
	    octet[|st$resp_bytes| & 0xff], octet[|st$resp_bytes| / 0x100], zeros_2,
	    lengths, numbers, st$heads, st$orig_bytes, st$resp_bytes, texts);
	}

# Packs a flow behind those of the shard that wait; how many wait now.
function pack(c: connection, final: bool, shard: count, server_name: string): count
	{
	if ( shard !in batches )
		batches[shard] = Packed();
	batches[shard] += packed_flow(c, final, server_name);
	return |batches[shard]|;
	}

function take(shard: count): Batch
	{
	local packed = join_string_vec(batches[shard], "");
	# Not compressed.
	local batch = Batch($flows=|batches[shard]|, $packed=encode_base64(cat(zeros_4, u32(|packed|), packed)));
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
