##! What the extraction in script keeps of a connection, bounded whatever its length.

@load ./main

module Tapline;

export {
	## State of one connection. Directions are kept relative to the sender of its first packet, since Zeek may decide later
	## that this was the responder.
	type State: record {
		## Sender of the first packet.
		first_h: addr;
		## Both endpoints are one host, so that only the ports tell the direction; then that of the first packet.
		same_host: bool &default=F;
		first_p: count &default=0;
		## First payload lengths, positive from the first packet's sender; and the payload packets beyond them, from that
		## sender and back.
		lengths: vector of int &default=vector();
		ahead: count &default=0;
		back: count &default=0;
		## First content bytes; these two follow Zeek's own idea of the originator.
		orig_bytes: string &default="";
		resp_bytes: string &default="";
		## Bytes that there is room for, 0 once there will be no more; and where their TCP streams go on, 0 before they start.
		orig_room: count &default=0;
		resp_room: count &default=0;
		orig_next: count &default=0;
		resp_next: count &default=0;
		## Packet heads, end to end; of each the microseconds since the packet before it times `gap_unit`, plus its bytes; the
		## tokens left for more; when the last packet with a head came, at first later than any.
		heads: string &default="";
		head_numbers: vector of count &default=vector();
		heads_left: count &default=0;
		last_packet_us: count &default=0xffffffffffffffff;
		## An early publication is due or done; what it covered; the connection is gone.
		early_due: bool &default=F;
		early: bool &default=F;
		early_mark: count &default=0;
		closed: bool &default=F;
	};
}

redef record connection += {
	tapline: Tapline::State &optional;
	## Set, in the place of a state, where a filter left the connection out.
	tapline_left_out: bool &optional;
	## Set while there is room for content: one look at it is all that the rest of a connection's content costs.
	tapline_takes_content: bool &optional;
};

# Of a head's number: no head is as long.
const gap_unit = 512;

# Declared here for the files that use them before the one that owns them is read.
global extension_bytes: function(ip6: ip6_hdr): count;
global transport_bytes: function(c: connection, p: pkt_hdr): count;
global make_early_due: function(c: connection);
global sent_by_orig: function(c: connection): bool;
