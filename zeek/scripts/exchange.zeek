##! The bus of a single Zeek since 8.1, which has no cluster backend unless one is loaded: what it publishes is dropped, and
##! clients of its WebSocket server wait for ever. ZeroMQ's backend runs an exchange inside this process. Abstract sockets
##! (unix(7), of Linux) with a name of their own take the place of its two fixed ports, so that Zeeks on one machine do not
##! meet, and nothing is left of them however Zeek ends.

@load frameworks/cluster/backend/zeromq

module Cluster::Backend::ZeroMQ;

const tapline_exchange = fmt("ipc://@tapline-%d-%s", getpid(), unique_id(""));

redef run_proxy_thread = T;
redef listen_xpub_endpoint = tapline_exchange + "-xpub";
redef connect_xsub_endpoint = tapline_exchange + "-xpub";
redef listen_xsub_endpoint = tapline_exchange + "-xsub";
redef connect_xpub_endpoint = tapline_exchange + "-xsub";
