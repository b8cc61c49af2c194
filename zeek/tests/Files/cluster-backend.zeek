# The backend of the tests' cluster: the one that Zeek has by default, and ZeroMQ's since 8.1, when there is none.

@ifdef ( Cluster::CLUSTER_BACKEND_NONE )
@load frameworks/cluster/backend/zeromq

const xpub = fmt("tcp://127.0.0.1:%d", port_to_count(to_port(getenv("XPUB_PORT"))));
const xsub = fmt("tcp://127.0.0.1:%d", port_to_count(to_port(getenv("XSUB_PORT"))));

redef Cluster::Backend::ZeroMQ::listen_xpub_endpoint = xpub;
redef Cluster::Backend::ZeroMQ::connect_xsub_endpoint = xpub;
redef Cluster::Backend::ZeroMQ::listen_xsub_endpoint = xsub;
redef Cluster::Backend::ZeroMQ::connect_xpub_endpoint = xsub;
@else
redef Broker::default_listen_retry = 1sec;
redef Broker::default_connect_retry = 1sec;
@endif
