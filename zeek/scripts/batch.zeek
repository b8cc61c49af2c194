##! Batches of flows in script, packed as the README of the package says at `Tapline::flows`, from the state that the
##! extraction in script keeps.
##!
##! Numbers are little-endian, which no function of Zeek writes: so they are put together as hex digits from the last to the
##! first, and their bytes are reversed.

@load base/protocols/conn
@load ./state
@load ./heads
@load ./server_names

module Tapline;

# Bytes of a flow without its variable parts.
const fixed_bytes = 120;

# Longest text of services.
const max_service = 128;

# Packed flows that wait, by shard.
type Packed: vector of string;
global batches: table[count] of Packed;

# Numbers, given as hex digits from the last to the first.
function little_endian(digits: string): string
	{
	return reverse(hexstr_to_bytestring(digits));
	}

# Network byte order, in 16 bytes.
function address_bytes(a: addr): string
	{
	local words = addr_to_counts(a);
	return hexstr_to_bytestring(|words| == 1 ? fmt("%08x%024x", words[0], 0)
	                                         : fmt("%08x%08x%08x%08x", words[0], words[1], words[2], words[3]));
	}

# Signed payload lengths, positive from the originator: digits from the last to the first.
function lengths_digits(st: State, straight: bool): string
	{
	local digits = "";
	for ( _, n in st$lengths )
		{
		local signed = straight ? n : -n;
		digits = fmt("%08x", signed < 0 ? 0x100000000 - |signed| : |signed|) + digits;
		}
	return digits;
	}

# Gaps and sizes of heads: digits from the last to the first.
function heads_digits(st: State): string
	{
	local gaps = "";
	local sizes = "";
	for ( i, size in st$head_sizes )
		{
		gaps = fmt("%016x", st$head_gaps_us[i]) + gaps;
		sizes = fmt("%04x", size) + sizes;
		}
	return sizes + gaps;
	}

const heads_kinds: table[string] of count = { ["none"] = 0, ["header"] = 1, ["full"] = 2 };

function packed_flow(c: connection, final: bool, server_name: string): string
	{
	local st = c$tapline;
	local id = c$id;
	local straight = sent_by_orig(c);
	local service = |c$service| > 0 ? to_lower(join_string_set(c$service, ",")) : "";
	if ( |service| > max_service )
		service = service[0:max_service];
	local conn_state = final && c?$conn && c$conn?$conn_state ? c$conn$conn_state : "";
	local parts = cat(st$heads, st$orig_bytes, st$resp_bytes, c$uid, service, conn_state, server_name);
	local heads_kept = |st$head_sizes|;
	local kept = |st$lengths|;
	local numbers = fmt("%016x%016x%016x%016x%016x%016x%016x%016x%04x%04x%02x%02x%02x%02x%08x",
	    straight ? st$back : st$ahead, straight ? st$ahead : st$back,
	    c$resp?$num_bytes_ip ? c$resp$num_bytes_ip : 0, c$orig?$num_bytes_ip ? c$orig$num_bytes_ip : 0,
	    c$resp?$num_pkts ? c$resp$num_pkts : 0, c$orig?$num_pkts ? c$orig$num_pkts : 0,
	    c$duration > 0sec ? double_to_count(interval_to_double(c$duration) * 1000000.0) : 0,
	    double_to_count(time_to_double(c$start_time) * 1000000.0), port_to_count(id$resp_p), port_to_count(id$orig_p),
	    heads_kinds[heads], link_type_byte(c), id$proto, (final ? 1 : 0) + (is_v6_addr(id$orig_h) ? 2 : 0),
	    fixed_bytes + 4 * kept + 10 * heads_kept + |parts|);
	local sizes = fmt("%04x%04x%04x%02x%02x%02x%02x%02x%02x", 0, |st$resp_bytes|, |st$orig_bytes|, heads_kept, kept,
	    |server_name|, |conn_state|, |service|, |c$uid|);
	return cat(little_endian(numbers), address_bytes(id$orig_h), address_bytes(id$resp_h),
	    little_endian(cat(heads_digits(st), lengths_digits(st, straight), sizes)), parts);
	}

function pack(c: connection, final: bool, shard: count, server_name: string): count
	{
	if ( shard !in batches )
		batches[shard] = Packed();
	batches[shard] += packed_flow(c, final, server_name);
	return |batches[shard]|;
	}

function take(shard: count): string
	{
	local packed = join_string_vec(batches[shard], "");
	delete batches[shard];
	# Not compressed.
	return encode_base64(cat(little_endian(fmt("%08x%08x", |packed|, 0)), packed));
	}
