redef Cluster::nodes = {
	["manager"] = Cluster::Node($node_type=Cluster::MANAGER, $ip=127.0.0.1, $p=to_port(getenv("MANAGER_PORT"))),
	["logger"] = Cluster::Node($node_type=Cluster::LOGGER, $ip=127.0.0.1, $p=to_port(getenv("LOGGER_PORT"))),
	["worker-1"] = Cluster::Node($node_type=Cluster::WORKER, $ip=127.0.0.1, $p=to_port(getenv("WORKER_1_PORT")), $manager="manager"),
	["worker-2"] = Cluster::Node($node_type=Cluster::WORKER, $ip=127.0.0.1, $p=to_port(getenv("WORKER_2_PORT")), $manager="manager"),
};
redef Cluster::manager_is_logger = F;
redef Cluster::retry_interval = 1sec;
