"""A Hub on loopback that speaks the few routes by which checkpoints are read and committed; keeps files in memory."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """`repositories`: for each name the files of its only branch. `asked` is every request, `tokens` what came with
    them. Files in `cut` break off after so many bytes, those in `endless` never end."""

    def __init__(self):
        self.repositories = {}
        self.asked = []
        self.tokens = set()
        self.cut = {}
        self.endless = set()

    def commit(self, name):
        """What the branch is now."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    @contextlib.contextmanager
    def running(self):
        """Serve; gives the environment of a client."""
        hub = self

        class Handler(_Handler):
            fake = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield {
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            }  # fmt: skip
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.fake.asked.append(f"{self.command} {path}")
        self.fake.tokens.add(self.headers.get("Authorization", ""))
        parts = path.strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            known = self.fake.repositories.setdefault(name, {}) is not None
            return self._json(
                {"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name}, 200 if known else 201
            )
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.fake.repositories:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self._of_repository(name, parts, body)

    def _of_repository(self, name, parts, body):
        files, commit = self.fake.repositories[name], self.fake.commit(name)
        if parts[0] != "api" and parts[2] == "resolve":
            if parts[3] not in ("main", commit):
                return self._json({}, 404, {"X-Error-Code": "RevisionNotFound"})
            return self._file(name, files, "/".join(parts[4:]), commit)
        what = parts[4] if len(parts) > 4 else "revision"
        if what == "revision":
            if len(parts) > 5 and parts[5] not in ("main", commit):
                return self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})
        if what == "tree":
            return self._json([{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()])
        if what == "preupload":
            asked = json.loads(body)["files"]
            return self._json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        if what == "commit":
            self._take(files, body)
            commit = self.fake.commit(name)
            return self._json(
                {"commitOid": commit, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{commit}"}
            )
        return self._json({"error": "no such route"}, 404)

    def _take(self, files, body):
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del files[entry["value"]["path"]]

    def _file(self, name, files, path, commit):
        if path not in files:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        content = files[path]
        self.send_response(200)
        length = (1 << 40) if path in self.fake.endless else len(content)
        for key, value in {"Content-Length": length, "ETag": '"x"', "X-Repo-Commit": commit}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "GET":
            return None
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[: self.fake.cut.get(path, len(content))])
            while path in self.fake.endless:
                self.wfile.write(bytes(1 << 16))
        self.close_connection = path in self.fake.cut
        return None

    def _json(self, value, status=200, headers=()):
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in dict(headers).items():
            self.send_header(key, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
