"""A server of the S3 protocol on the loopback interface, by moto, with everything in memory: `python -m` this prints
its port and serves until standard input ends. A process of its own, so that nothing of it is in the one that tests."""

import logging
import sys

from moto.server import ThreadedMotoServer


def main() -> None:
    """Start, wait, end."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
