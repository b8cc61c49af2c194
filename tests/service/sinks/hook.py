"""An HTTP server that webhooks are posted to, which answers, fails, hangs and drips as it is told."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hook(ThreadingHTTPServer):
    """Answers as it is told: `answers` takes the numbers of a batch and gives a status and headers."""

    daemon_threads = True

    def __init__(self, context=None):
        self.answers = lambda numbers: (200, {})
        self.posts = []
        self.hang = threading.Event()
        self.drip = False
        super().__init__(("127.0.0.1", 0), Answer)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def handle_error(self, *_):
        """A client that gives up is expected."""

    def stop(self):
        self.hang.set()
        self.shutdown()
        self.thread.join(20)
        self.server_close()

    def url(self, scheme="http"):
        return f"{scheme}://localhost:{self.server_port}/hooks/T0?"


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = [record.get("number") for record in json.loads(body)["records"]]
        self.server.posts.append((self.path, dict(self.headers), body, found))
        status, headers = self.server.answers(found)
        if status is None:
            self.server.hang.wait(20)
            return
        if self.server.drip:
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                while not self.server.hang.wait(0.02):
                    self.wfile.write(b"x")
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Says nothing."""
