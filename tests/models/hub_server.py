"""A hub on this machine: as much of its protocol as opening and downloading a model takes.

GET  /api/models/ORG/NAME[/revision/REV]        the commit and the files, with sizes and sha256
HEAD /ORG/NAME/resolve/REV/FILE                 ETag, commit and size; large files redirect to another host
GET  /ORG/NAME/resolve/REV/FILE                 bytes, or the range that was asked for
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A model: commits, each with its files, and names for commits."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False


@dataclass
class Request:
    """One request that came in, and how many bytes of a file were sent for it."""

    method: str
    path: str
    host: str
    authorized: bool
    sent: int = 0


@dataclass
class FakeHub:
    """The hub's contents and what it was asked.

    `ignore_ranges`: whole files are sent. `cut_off`: no more than so many bytes of each. `status`: the answer to all.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    ignore_ranges: bool = False
    cut_off: int | None = None
    status: int | None = None
    reason: str = ""

    def sent(self, part: str) -> int:
        """Bytes sent of files whose path holds `part`."""
        return sum(request.sent for request in self.requests if part in request.path)


def is_large(name: str) -> bool:
    """Whether the hub keeps a file as an object of its own, named by its sha256, on another host."""
    return name.endswith((".safetensors", ".bin"))


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub that answers until the block ends."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = hub
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        host = (self.headers["Host"] or "").partition(":")[0]
        self.request_seen = Request(self.command, path, host, "Authorization" in self.headers)
        self.server.hub.requests.append(self.request_seen)
        if self.server.hub.status is not None:
            self._send(self.server.hub.status, b"", {"X-Error-Message": self.server.hub.reason})
        elif path.startswith("/api/models/"):
            self._model(path.removeprefix("/api/models/"))
        elif path.startswith("/cdn/"):
            self._content(path.rpartition("/")[2])
        else:
            self._file(path)

    def _model(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        found = self.server.hub.repositories.get(name)
        if found is None:
            # What the hub says to a stranger: it does not tell missing models from private ones.
            self._send(401, b'{"error": "Repository not found"}')
            return
        commit = self._commit(found, revision or "main")
        if commit is None:
            self._send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [self._sibling(file, data) for file, data in found.commits[commit].items()]
        self._send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())

    def _sibling(self, file: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": "0" * 40}
        if is_large(file):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _commit(self, found: Repository, revision: str) -> str | None:
        if revision in found.commits:
            return revision
        return found.refs.get(revision)

    def _file(self, path: str) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self.server.hub.repositories.get(name)
        commit = self._commit(found, revision) if found else None
        if found is None or commit is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif found.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif file not in found.commits[commit]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif is_large(file):
            data = found.commits[commit][file]
            sha256 = hashlib.sha256(data).hexdigest()
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.server.hub.address.replace('127.0.0.1', 'localhost')}/cdn/{file}/{sha256}",
            }
            self._send(302, b"", headers)
        else:
            data = found.commits[commit][file]
            etag = hashlib.sha1(data).hexdigest()
            self._ranged(data, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def _content(self, sha256: str) -> None:
        contents = (
            d
            for repo in self.server.hub.repositories.values()
            for files in repo.commits.values()
            for d in files.values()
        )
        data = next(data for data in contents if hashlib.sha256(data).hexdigest() == sha256)
        self._ranged(data, {"ETag": f'"{sha256}"'})

    def _ranged(self, data: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range")
        if self.server.hub.cut_off is not None:
            data = data[: self.server.hub.cut_off]
        if wanted is None or self.server.hub.ignore_ranges:
            self._send(200, data, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._send(206, part, {**headers, "Content-Range": place})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            try:
                for start in range(0, len(body), 1 << 16):
                    self.request_seen.sent += self.wfile.write(body[start : start + (1 << 16)])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has what it wanted
