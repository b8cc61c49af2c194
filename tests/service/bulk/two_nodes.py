"""A Ray cluster of two nodes of one CPU on the loopback interface, by Ray's own utility: `python -m` this prints its
address and holds it until standard input ends. A process of its own, so that all of Ray ends with it."""

import sys
import tempfile


def main() -> None:
    """Start, wait, end."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="tapline-", ignore_cleanup_errors=True) as folder:
        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": folder})
        try:
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
            print(cluster.address, flush=True)
            sys.stdin.read()
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
