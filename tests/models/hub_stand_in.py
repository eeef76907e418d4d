"""A hub on this machine: the endpoints that `huggingface_hub` asks for a repository and its files.

    with Hub() as hub:
        hub.commit("acme/model", {"config.json": b"{}"})       # a new commit on `main`
        ...                                                    # HF_ENDPOINT = hub.url

Files that end in `.json` are plain, all others lie in large file storage, with their SHA-256 as
ETag. `status` answers a path with an error, `cut_bytes` ends each transfer early, `token` gates.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Branches, each a commit; commits, each the content of its files by path."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """The server, its repositories, its faults, and the requests that it saw."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.num_commits = 0
        self.repositories: dict[str, Repository] = {}
        self.status: dict[str, int] = {}
        self.cut_bytes: int | None = None
        self.garbled: set[str] = set()
        self.token: str | None = None
        self.seen: list[tuple[str, str, str | None]] = []  # method, path, range

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit of these files alone, at the tip of a branch; its SHA-1."""
        repo = self.repositories.setdefault(repository, Repository())
        self.num_commits += 1
        digest = hashlib.sha1(f"commit {self.num_commits}".encode()).hexdigest()
        repo.commits[digest] = dict(files)
        repo.branches[branch] = digest
        return digest

    def transferred(self, name: str) -> list[str | None]:
        """The ranges of all GET requests for a file of that name."""
        return [asked for method, path, asked in self.seen if method == "GET" and name in path]


class Handler(BaseHTTPRequestHandler):
    """Answers the listing of a repository at a revision, and its files at a revision."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append((self.command, path, self.headers.get("Range")))
        for part, status in self.server.status.items():
            if part in path:
                self._send(status, b"no")
                return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._list(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._send(404, b"no such endpoint")

    def _find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.server.repositories.get(repository)
        if repo is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repo.commits[commit]

    def _list(self, repository: str, revision: str) -> None:
        if found := self._find(repository, revision):
            commit, files = found
            siblings = [sibling(name, content) for name, content in files.items()]
            answer = {"id": repository, "sha": commit, "siblings": siblings}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str) -> None:
        authorised = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if self.server.token is not None and not authorised:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
            return
        if found := self._find(repository, revision):
            commit, files = found
            if name not in files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            self._transfer(files[name], name, {"X-Repo-Commit": commit})

    def _transfer(self, content: bytes, name: str, headers: dict[str, str]) -> None:
        etag = blob(content) if name.endswith(".json") else hashlib.sha256(content).hexdigest()
        if name in self.server.garbled:
            content = bytes(len(content))
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        headers |= {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if match:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if match else 200, content[start:], headers, cut=self.server.cut_bytes)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            if cut is not None and cut < len(body):
                self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Quiet."""


def sibling(name: str, content: bytes) -> dict[str, Any]:
    """A file as a listing with `blobs=true` describes it."""
    entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob(content)}
    if not name.endswith(".json"):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
    return entry


def blob(content: bytes) -> str:
    """Git's SHA-1 of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
