"""`tapline serve` in a process of its own on a loopback port, asked over real sockets; and captures of many flows."""

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

WAIT_SECONDS = 180
START = "{before}; from tapline.service.command.cli import main; main()"


class Server:
    """A running service; `log` is what it wrote. `tls`: the context of clients, where it serves HTTPS."""

    def __init__(self, folder, checkpoint, *flags, before="pass", cwd=None, env=None, tls=None):
        self._tls = tls
        self._log = folder / "service.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TAPLINE_")}
        environment["XDG_DATA_HOME"] = str(folder)  # data directories of its own
        environment["TAPLINE_CONFIG"] = "none"
        command = [sys.executable, "-P", "-c", START.format(before=before), "serve", "--port", "0"]
        command += ["--checkpoint", str(checkpoint), *map(str, flags)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=cwd, env={**environment, **(env or {})}, stderr=log)
        self.port = None
        self.wait(self._started)

    def _started(self):
        assert self.process.poll() is None, self.log
        lines = [line for line in self.log.splitlines() if "event=serving" in line]
        if lines and self.port is None:
            self.port = int(lines[0].split("://127.0.0.1:")[1].split()[0])
        return self.port is not None and self.answers("/healthz")

    @property
    def log(self):
        return self._log.read_text()

    def wait(self, condition):
        """Until it holds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := condition()):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return found

    def wait_free(self):
        """Until every place for captures is free."""
        self.wait(lambda: self.answers("/readyz"))

    def answers(self, path):
        with contextlib.suppress(OSError):
            return self.ask("GET", path)[0] == 200
        return False

    def ask(self, method, path, body=None, headers=None):
        """Status and body of an answer."""
        place = ("127.0.0.1", self.port)
        if self._tls is not None:
            connection = http.client.HTTPSConnection(*place, timeout=WAIT_SECONDS, context=self._tls)
        else:
            connection = http.client.HTTPConnection(*place, timeout=WAIT_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, capture, **headers):
        return self.ask("POST", "/v1/classify/pcap", capture, headers)

    def connect(self, *sent, receive_bytes=None):
        """A socket on which something was sent."""
        client = socket.socket()
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(WAIT_SECONDS)
        client.connect(("127.0.0.1", self.port))
        for piece in sent:
            client.sendall(piece)
        return client

    @property
    def descriptors(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def children(self):
        """Processes that it has started, the dead ones that nobody took leave of included."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return found

    def stop(self):
        """End it in order; the status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def head(*lines, path="/v1/classify/pcap", method="POST", host="127.0.0.1"):
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


def read_answer(client):
    """Status and JSON of an answer that ends with its connection."""
    data = b""
    while piece := client.recv(1 << 16):
        data += piece
    first, _, body = data.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(body)


def udp_capture(flows, payload_bytes=200, gap_us=1_000_000):
    """A capture of so many UDP flows of one packet, each so much later than the one before."""
    packets = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for index in range(flows):
        payload = bytes([index % 251]) * payload_bytes
        udp = struct.pack(">HHHH", 1024 + index % 60_000, 53, 8 + len(payload), 0) + payload
        source = bytes([10, 0, index >> 8 & 255, index & 255])
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), index & 0xFFFF, 0, 64, 17, 0, source, bytes([192, 0, 2, 1])
        )
        total = sum(struct.unpack(">10H", ip))
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        ip = ip[:10] + struct.pack(">H", checksum) + ip[12:]
        frame = bytes(12) + b"\x08\x00" + ip + udp
        seconds, rest = divmod(index * gap_us, 1_000_000)
        packets.append(struct.pack("<IIII", 1_700_000_000 + seconds, rest, len(frame), len(frame)) + frame)
    return b"".join(packets)
