"""A Ray cluster of two nodes of one CPU on the loopback interface, by Ray's own utility: `python -m` this prints its
address and holds it until standard input ends. A process of its own, so that all of Ray ends with it."""

import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Start, wait, end."""
    with tempfile.TemporaryDirectory(prefix="tapline-", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        Path(folder, "ray").mkdir()  # where the utility writes the address
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        cluster = Cluster()
        try:
            cluster.add_node(**node)
            cluster.add_node(**node)
            print(cluster.address, flush=True)
            sys.stdin.read()
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
