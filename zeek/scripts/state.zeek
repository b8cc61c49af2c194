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
		## F: left out by a filter.
		observed: bool &default=T;
		## Payload packets from the first packet's sender, and back.
		ahead: count &default=0;
		back: count &default=0;
		## First payload lengths, positive from the first packet's sender.
		lengths: vector of int &default=vector();
		## First content bytes; these two follow Zeek's own idea of the originator.
		orig_bytes: string &default="";
		resp_bytes: string &default="";
		## Where their TCP streams go on, 0 before they start; and whether there will be no more bytes.
		orig_next: count &default=0;
		resp_next: count &default=0;
		orig_done: bool &default=F;
		resp_done: bool &default=F;
		## Packet heads, end to end; of each its bytes and the time since the packet before it; the tokens left for more.
		heads: string &default="";
		head_sizes: vector of count &default=vector();
		head_gaps_us: vector of count &default=vector();
		heads_left: count &default=0;
		last_packet_us: count &default=0;
		## An early publication is due or done; what it covered; the connection is gone.
		early_due: bool &default=F;
		early: bool &default=F;
		early_mark: count &default=0;
		closed: bool &default=F;
	};
}

redef record connection += {
	tapline: Tapline::State &optional;
};

# Declared here for the files that use them before the one that owns them is read.
global extension_bytes: function(ip6: ip6_hdr): count;
global transport_bytes: function(c: connection, p: pkt_hdr): count;
global make_early_due: function(c: connection);
global sent_by_orig: function(c: connection): bool;
