# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""A small Hugging Face Hub on 127.0.0.1, for tests that push with the real client and load what was pushed.

It answers what huggingface_hub 2.4 asks when it creates repositories, commits regular and Git LFS files, makes
branches or tags, lists and downloads; requests and answers were read from that client's source. Not modeled: all that
no test asks for, such as datasets, a second user, Xet (clients need HF_HUB_DISABLE_XET=1) and pull requests.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote


# The rules of a new repository on the real Hub: these go through LFS however small they are.
LFS_SUFFIXES = (".bin", ".ckpt", ".gz", ".h5", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth", ".safetensors")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LARGEST_REGULAR_FILE = 10 * 1024**2


def goes_through_lfs(path: str, size: int) -> bool:
    return size > LARGEST_REGULAR_FILE or path.endswith(LFS_SUFFIXES)


class HubError(Exception):
    """An answer other than success. The client chooses its exception class by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **body}
        self.headers = {"X-Error-Message": re.sub("[^ -~]", "?", message), **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class File:
    """One version of a file. Its content lies in the Hub's folder."""

    sha256: str
    blob_sha1: str
    size: int
    is_lfs: bool

    @property
    def etag(self) -> str:
        """What the client compares with its own file: sha256 of an LFS file, git's blob sha1 of a regular one."""
        return self.sha256 if self.is_lfs else self.blob_sha1

    def tree_entry(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.blob_sha1}
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": 134}
        return {**entry, "lfs": lfs} if self.is_lfs else entry


@dataclass(frozen=True)
class Commit:
    title: str
    parent: "Commit | None"
    files: dict[str, File]
    oid: str = field(default_factory=lambda: secrets.token_hex(20))
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    def history(self) -> Iterator["Commit"]:
        commit = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repository:
    id: str  # namespace/name
    private: bool
    branches: dict[str, Commit]
    tags: dict[str, Commit] = field(default_factory=dict)
    lfs_files: dict[str, File] = field(default_factory=dict)  # by sha256: uploaded, committed or not

    def branch(self, name: str) -> Commit:
        if name not in self.branches:
            raise HubError(404, f"No branch {name}", "RevisionNotFound")
        return self.branches[name]

    def at(self, revision: str) -> Commit:
        """The commit named by a branch, a tag, or the first 7 or more digits of a commit id."""
        refs = {**self.tags, **self.branches}
        if revision in refs:
            return refs[revision]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for commit in (commit for head in refs.values() for commit in head.history()):
                if commit.oid.startswith(revision):
                    return commit
        raise HubError(404, f"No revision {revision}", "RevisionNotFound")

    def commit(self, branch: str, files: dict[str, File], title: str) -> Commit:
        self.branches[branch] = Commit(title, self.branch(branch), files)
        return self.branches[branch]


class Request(NamedTuple):
    """A line of the log. Headers and query are left out, so that no token can get into it."""

    method: str
    path: str
    status: int | None  # None: the connection was dropped


class LoopbackHub:
    """What the Hub stores, what was asked of it, and the faults that come next. Serves as long as the process lives.

    Args:
        folder: Where the contents of files go; made if missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.token = "hf_" + secrets.token_hex(16)  # random, so that a test can search output and files for it
        self.token_role = "write"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[tuple[re.Pattern, str | int]] = []
        self.lock = threading.RLock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    # For tests: faults, the log, and a way into the storage that does not go through a client.

    def fail_next(self, pattern: str, how: str | int = "drop", times: int = 1) -> None:
        """Makes the next requests fail whose "METHOD /path" the regular expression `pattern` is found in.

        Args:
            how: A status to answer, or "drop": the connection is closed after half of the request's body or, where
                the request has none, after half of the answer's body.
            times: How many requests fail. The client repeats most requests up to five times, but never a commit.
        """
        self.faults += [(re.compile(pattern), how)] * times

    def take_fault(self, method_and_path: str) -> str | int | None:
        with self.lock:
            for index, (pattern, how) in enumerate(self.faults):
                if pattern.search(method_and_path):
                    del self.faults[index]
                    return how
        return None

    def count(self, pattern: str) -> int:
        """How many logged requests have a "METHOD /path" that the regular expression `pattern` is found in."""
        return sum(re.search(pattern, f"{request.method} {request.path}") is not None for request in self.requests)

    def blob_path(self, file: File) -> Path:
        """Where a content lies. A test may overwrite it to have the Hub serve something else than it says.

        Files of equal content share it, in all repositories; the next upload of that content restores it.
        """
        return self.folder / f"{'lfs' if file.is_lfs else 'git'}-{file.sha256}"

    def read(self, repo_id: str, path: str) -> bytes:
        return self.blob_path(self.repositories[repo_id].branches["main"].files[path]).read_bytes()

    def write(self, repo_id: str, files: dict[str, bytes]) -> Commit:
        """Commits files without any check, also under names that no client would send."""
        with self.lock:
            repo = self.repositories[repo_id]
            tree = dict(repo.branch("main").files)
            for path, content in files.items():
                file = tree[path] = self.store(content, goes_through_lfs(path, len(content)))
                if file.is_lfs:
                    repo.lfs_files[file.sha256] = file
            return repo.commit("main", tree, "Written by a test")

    # Storage. Callers that may meet others hold the lock.

    def create(self, repo_id: str, private: bool = False) -> Repository:
        files = {".gitattributes": self.store(GITATTRIBUTES, is_lfs=False)}
        branches = {"main": Commit("initial commit", None, files)}
        self.repositories[repo_id] = Repository(repo_id, private, branches)
        return self.repositories[repo_id]

    def delete(self, repo_id: str) -> None:
        """Removes a repository, and from the disk the LFS files that only it had."""
        for sha256, file in self.repositories.pop(repo_id).lfs_files.items():
            if not any(sha256 in other.lfs_files for other in self.repositories.values()):
                self.blob_path(file).unlink(missing_ok=True)

    def store(self, content: bytes, is_lfs: bool) -> File:
        blob_sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content)
        file = File(hashlib.sha256(content).hexdigest(), blob_sha1.hexdigest(), len(content), is_lfs)
        self.blob_path(file).write_bytes(content)
        return file


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # the client downloads with several threads; those beyond the default of 5 wait a second
    hub: LoopbackHub

    def handle_error(self, request, client_address):
        """Clients that go away are expected here; anything else is a defect of this file and gets shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes


def _json(value: Any, status: int = 200, headers: dict | None = None) -> Answer:
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


ROUTES: list[tuple[str, re.Pattern, str, Callable]] = []  # method, path, access, function


def _route(method: str, path: str, access: str) -> Callable:
    """Enters a method of the handler into the table; of several that match a request the first one answers.

    Args:
        path: Regular expression for the path as sent, where a slash within a revision is still %2F. Its groups become
            keyword arguments, unquoted.
        access: "anybody", "user" (who sends the token), or "read" or "write": then `id` becomes the argument `repo`,
            to which the user has that access.
    """

    def enter(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(path), access, function))
        return function

    return enter


_WEB = "/(?P<id>[^/]+/[^/]+)"
_API = f"/api/(?:models|spaces){_WEB}"
_REVISION = "(?P<revision>[^/]+)"


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, and with delayed ACKs that costs 40 ms
    server: _Server

    # From the connection to the route and back.

    def do_GET(self):
        self.hub, self.is_user = self.server.hub, False
        self.route_path = self.path.partition("?")[0]
        fault = self.hub.take_fault(f"{self.command} {self.route_path}")
        size = int(self.headers.get("Content-Length", 0))
        if fault == "drop" and (size > 0 or self.command == "HEAD"):
            self.rfile.read(size // 2)
            self._log(None)
            return self._drop()
        self.body = self.rfile.read(size)  # whatever becomes of the request: the next one comes after it
        if len(self.body) < size:
            raise ConnectionAbortedError("The client went away in the middle of a request.")
        try:
            if isinstance(fault, int):
                raise HubError(fault, "A fault that the test asked for")
            with self.hub.lock:
                answer = self._answer()
        except HubError as error:
            answer = _json(error.body, error.status, error.headers)
        self._send(answer, drop=fault == "drop")

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> Answer:
        if "Authorization" in self.headers:
            self.is_user = self.headers["Authorization"] == f"Bearer {self.hub.token}"
            if not self.is_user:
                raise HubError(401, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, access, function in ROUTES:
            if route_method == method and (match := pattern.fullmatch(self.route_path)):
                arguments = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return self._call(function, access, arguments)
        raise HubError(404, "This Hub does not know the address")

    def _call(self, function: Callable, access: str, arguments: dict[str, str]) -> Answer:
        if access == "user" and not self.is_user:
            raise HubError(401, "Invalid username or password.")
        if access in ("read", "write"):
            repo = arguments["repo"] = self.hub.repositories.get(arguments.pop("id"))
            if repo is None or (repo.private and not self.is_user):
                # As on the real Hub, nobody learns whether a repository that he may not see exists.
                raise HubError(404 if self.is_user else 401, "Repository not found", "RepoNotFound")
            if access == "write" and not self.is_user:
                raise HubError(401, "Only its owner may write to this repository")
        try:
            answer = function(self, **arguments)
        except (KeyError, TypeError, ValueError) as error:
            raise HubError(400, f"Malformed request: {error!r}") from error
        return answer if isinstance(answer, Answer) else _json(answer)

    def _send(self, answer: Answer, drop: bool) -> None:
        # Before the client can see the answer: a test may look at the log as soon as its call returns.
        self._log(None if drop else answer.status)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content[: len(answer.content) // 2] if drop else answer.content)
        if drop:
            self._drop()

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _log(self, status: int | None) -> None:
        self.hub.requests.append(Request(self.command, self.route_path, status))

    def log_message(self, *args) -> None:
        """Nothing on stderr; see `LoopbackHub.requests`."""

    # Who asks, his repositories and their cards.

    @_route("GET", "/api/whoami-v2", "user")
    def who_am_i(self):
        token = {"displayName": "of the tests", "role": self.hub.token_role}
        return {"type": "user", "name": "tester", "orgs": [{"name": "team"}], "auth": {"accessToken": token}}

    @_route("POST", "/api/repos/create", "user")
    def create_repository(self):
        request = json.loads(self.body)
        repo_id = "{}/{}".format(request.get("organization") or "tester", request["name"])
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            raise HubError(409, "You already created this repository", url=url)
        self.hub.create(repo_id, private=request.get("visibility") == "private")
        return {"url": url, "name": repo_id, "id": repo_id}

    @_route("POST", "/api/validate-yaml", "anybody")
    def validate_card(self):
        """Accepts every card: the standard library cannot read YAML."""
        return {"errors": [], "warnings": []}

    # Uploads: preupload says what is regular or LFS and what is there already, LFS objects come, a commit names them.

    @_route("POST", f"{_API}/preupload/{_REVISION}", "write")
    def preupload(self, repo: Repository, revision: str):
        tree = repo.at(revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if goes_through_lfs(path, file["size"]) else "regular"
            oid = tree[path].etag if path in tree else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    @_route("POST", rf"{_WEB}\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self, repo: Repository):
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in repo.lfs_files:
                lfs_url = f"{self.hub.url}/{repo.id}.git/info/lfs"
                upload, verify = {"href": f"{lfs_url}/upload/{wanted['oid']}"}, {"href": f"{lfs_url}/verify"}
                wanted["actions"] = {"upload": upload, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    @_route("PUT", rf"{_WEB}\.git/info/lfs/upload/(?P<sha256>[0-9a-f]{{64}})", "anybody")
    def lfs_upload(self, id: str, sha256: str):
        """The client sends no token here: on the real Hub this is an object store, and the address is secret."""
        file = self.hub.store(self.body, is_lfs=True)
        if file.sha256 != sha256:
            raise HubError(400, "The content does not have the announced sha256")
        self.hub.repositories[id].lfs_files[sha256] = file
        return {}

    @_route("POST", rf"{_WEB}\.git/info/lfs/verify", "write")
    def lfs_verify(self, repo: Repository):
        request = json.loads(self.body)
        if request["oid"] not in repo.lfs_files or repo.lfs_files[request["oid"]].size != request["size"]:
            raise HubError(404, "There is no such LFS object")
        return {}

    @_route("POST", f"{_API}/commit/{_REVISION}", "write")
    def commit(self, repo: Repository, revision: str):
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        tree = dict(repo.branch(revision).files)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = value["path"]
            if key == "file":
                tree[path] = self.hub.store(base64.b64decode(value["content"]), is_lfs=False)
            elif key == "lfsFile":
                tree[path] = repo.lfs_files[value["oid"]]  # a KeyError, and so no commit, if it was not uploaded
            elif key == "deletedFile":
                del tree[path]
            else:
                raise ValueError(f"unknown operation {key}")
        commit = repo.commit(revision, tree, header["value"]["summary"])
        return {"commitOid": commit.oid, "commitUrl": f"{self.hub.url}/{repo.id}/commit/{commit.oid}"}

    # Branches and tags.

    @_route("GET", f"{_API}/refs", "read")
    def refs(self, repo: Repository):
        def listed(refs: dict[str, Commit], place: str) -> list[dict]:
            return [{"name": name, "ref": f"refs/{place}/{name}", "targetCommit": refs[name].oid} for name in refs]

        return {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}

    @_route("POST", f"{_API}/branch/(?P<branch>[^/]+)", "write")
    def create_branch(self, repo: Repository, branch: str):
        if branch in repo.branches:
            raise HubError(409, "The branch exists already")
        repo.branches[branch] = repo.at(json.loads(self.body).get("startingPoint", "main"))
        return {}

    @_route("POST", f"{_API}/tag/{_REVISION}", "write")
    def create_tag(self, repo: Repository, revision: str):
        repo.tags[json.loads(self.body)["tag"]] = repo.at(revision)
        return {}

    # Lists and downloads.

    @_route("GET", f"{_API}/commits/{_REVISION}", "read")
    def commits(self, repo: Repository, revision: str):
        return [
            {"id": c.oid, "title": c.title, "message": "", "authors": [{"user": "tester"}], "date": c.date}
            for c in repo.at(revision).history()
        ]

    @_route("GET", f"{_API}/tree/{_REVISION}", "read")
    def tree(self, repo: Repository, revision: str):
        """All files; the client that asks for them skips folders."""
        return [file.tree_entry(path) for path, file in sorted(repo.at(revision).files.items())]

    @_route("GET", f"{_WEB}/resolve/{_REVISION}/(?P<path>.+)", "read")
    def resolve(self, repo: Repository, revision: str, path: str):
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        file = commit.files[path]
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):  # the rest of a dropped download
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
        return Answer(status, headers, self.hub.blob_path(file).read_bytes()[start:])

    @_route("GET", f"{_API}(?:/revision/{_REVISION})?", "read")
    def info(self, repo: Repository, revision: str = "main"):
        commit = repo.at(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return {"id": repo.id, "sha": commit.oid, "private": repo.private, "siblings": siblings}
