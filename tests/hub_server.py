# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""A small Hugging Face Hub on 127.0.0.1, for tests that push with the real client and load what was pushed.

It answers what huggingface_hub 2.4 asks when it creates repositories, commits regular and Git LFS files, makes
branches or tags, lists and downloads; requests and answers were read from that client's source. Not modeled: Xet
(clients need HF_HUB_DISABLE_XET=1), pull requests, gated repositories, renames, pages of long lists, LFS in parts.
"""

import base64
import fnmatch
import hashlib
import io
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qs, unquote


# Every new repository has these rules, as on the real Hub: weights go through LFS however small they are.
LFS_SUFFIXES = ("bin", "ckpt", "gz", "h5", "npy", "npz", "onnx", "parquet", "pkl", "pt", "pth", "safetensors", "zip")
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LARGEST_REGULAR_FILE = 10 * 1024**2


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
    message: str
    author: str
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
    kind: str  # models, datasets or spaces
    id: str  # namespace/name
    owner: str
    private: bool
    branches: dict[str, Commit]
    tags: dict[str, Commit] = field(default_factory=dict)
    lfs_files: dict[str, File] = field(default_factory=dict)  # by sha256: uploaded, committed or not

    @property
    def web_path(self) -> str:
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

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

    def commit(self, branch: str, files: dict[str, File], title: str, message: str, author: str) -> Commit:
        self.branches[branch] = Commit(title, message, author, self.branch(branch), files)
        return self.branches[branch]


class Request(NamedTuple):
    """A line of the log. Headers and query are left out, so that no token can get into it."""

    method: str
    path: str
    user: str | None  # None: sent no token
    status: int | None  # None: the connection was dropped


class LoopbackHub:
    """What the Hub stores, what was asked of it, and the faults that come next. Serves until `close()`.

    Args:
        folder: Where the contents of files go; made if missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.token = "hf_" + secrets.token_hex(16)  # random, so that a test can search output and files for it
        self.users = {self.token: "tester"}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[tuple[re.Pattern, str | int]] = []
        self.lock = threading.RLock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    # For tests: faults, the log, and a way into the storage that does not go through a client.

    def fail_next(self, pattern: str, how: str | int = "drop", times: int = 1) -> None:
        """Makes the next requests fail whose "METHOD /path" the regular expression `pattern` is found in.

        Args:
            how: A status to answer, or "drop": the connection is closed after half of the request's body or, where
                the request has none, after half of the answer's body.
            times: How many requests fail. The client repeats most requests up to five times, but never a commit.
        """
        if how != "drop" and not isinstance(how, int):
            raise ValueError(f"how={how!r} has to be 'drop' or a status such as 403.")
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

    def repository(self, repo_id: str, kind: str = "models") -> Repository:
        return self.repositories[kind, repo_id]

    def blob_path(self, file: File) -> Path:
        """Where a content lies. A test may overwrite it to have the Hub serve something else than it says.

        Files of equal content share it, in all repositories; the next upload of that content restores it.
        """
        return self.folder / f"{'lfs' if file.is_lfs else 'git'}-{file.sha256}"

    def read(self, repo_id: str, path: str, revision: str = "main", kind: str = "models") -> bytes:
        return self.blob_path(self.repository(repo_id, kind).at(revision).files[path]).read_bytes()

    def write(self, repo_id: str, files: dict[str, bytes], revision: str = "main", kind: str = "models") -> Commit:
        """Commits files without any check, also under names that no client would send."""
        with self.lock:
            repo = self.repository(repo_id, kind)
            tree = dict(repo.branch(revision).files)
            for path, content in files.items():
                file = tree[path] = self.store(io.BytesIO(content), self.is_lfs(tree, path, len(content)))
                if file.is_lfs:
                    repo.lfs_files[file.sha256] = file
            return repo.commit(revision, tree, "Written by a test", "", repo.owner)

    # Storage. Callers that may meet others hold the lock.

    def create(self, repo_id: str, kind: str = "models", owner: str = "tester", private: bool = False) -> Repository:
        files = {".gitattributes": self.store(io.BytesIO(GITATTRIBUTES), is_lfs=False)}
        branches = {"main": Commit("initial commit", "", owner, None, files)}
        self.repositories[kind, repo_id] = Repository(kind, repo_id, owner, private, branches)
        return self.repositories[kind, repo_id]

    def delete(self, repo: Repository) -> None:
        """Removes a repository, and from the disk the LFS files that only it had."""
        del self.repositories[repo.kind, repo.id]
        for sha256, file in repo.lfs_files.items():
            if not any(sha256 in other.lfs_files for other in self.repositories.values()):
                self.blob_path(file).unlink(missing_ok=True)

    def store(self, stream: BinaryIO, is_lfs: bool) -> File:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        sha256, blob_sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as target:
            while chunk := stream.read(1024**2):
                sha256.update(chunk)
                blob_sha1.update(chunk)
                target.write(chunk)
        file = File(sha256.hexdigest(), blob_sha1.hexdigest(), size, is_lfs)
        os.replace(target.name, self.blob_path(file))
        return file

    def is_lfs(self, files: dict[str, File], path: str, size: int) -> bool:
        """Whether .gitattributes of the tree `files`, or its size, sends a new file through LFS."""
        rules = self.blob_path(files[".gitattributes"]).read_text() if ".gitattributes" in files else ""
        patterns = [line.split()[0] for line in rules.splitlines() if "filter=lfs" in line.split()]
        name = path.rpartition("/")[2]
        matches = (fnmatch.fnmatchcase(path if "/" in pattern else name, pattern) for pattern in patterns)
        return size > LARGEST_REGULAR_FILE or any(matches)


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
    content: BinaryIO  # from its present position on
    size: int


def _json(value: Any, status: int = 200, headers: dict | None = None) -> Answer:
    content = json.dumps(value).encode()
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, io.BytesIO(content), len(content))


ROUTES: list[tuple[str, re.Pattern, str, Callable]] = []  # method, path, access, function


def _route(method: str, path: str, access: str) -> Callable:
    """Enters a method of the handler into the table; of several that match a request the first one answers.

    Args:
        path: Regular expression for the path as sent, where a slash within a revision is still %2F. Its groups become
            keyword arguments, unquoted.
        access: "anybody", "user" (a known token), or "read" or "write": then `kind` and `id` become the argument
            `repo`, to which the user has that access.
    """

    def enter(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(path), access, function))
        return function

    return enter


_ID = "(?P<id>[^/]+/[^/]+|[^/]+)"
_API = f"/api/(?P<kind>models|datasets|spaces)/{_ID}"
_WEB = f"/(?:(?P<kind>datasets|spaces)/)?{_ID}"
_REVISION = "(?P<revision>[^/]+)"


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, and with delayed ACKs that costs 40 ms
    server: _Server

    # From the connection to the route and back.

    def do_GET(self):
        self.hub, self.user = self.server.hub, None
        self.route_path, _, query = self.path.partition("?")
        self.query = {name: values[0] for name, values in parse_qs(query).items()}
        fault = self.hub.take_fault(f"{self.command} {self.route_path}")
        size = int(self.headers.get("Content-Length", 0))
        if fault == "drop" and (size > 0 or self.command == "HEAD"):
            self.rfile.read(size // 2)
            self._log(None)
            return self._drop()
        with tempfile.SpooledTemporaryFile(1024**2, dir=self.hub.folder) as self.body:
            try:
                self._receive(size)
                if isinstance(fault, int):
                    raise HubError(fault, "A fault that the test asked for")
                with self.hub.lock:
                    answer = self._answer()
            except HubError as error:
                answer = _json(error.body, error.status, error.headers)
            with answer.content:
                self._send(answer, drop=fault == "drop")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _receive(self, size: int) -> None:
        """Takes the whole body off the connection, whatever becomes of the request: the next one comes after it."""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise HubError(411, "Content-Length is required")
        while size > 0:
            chunk = self.rfile.read(min(size, 1024**2))
            if not chunk:
                raise ConnectionAbortedError("The client went away in the middle of a request.")
            self.body.write(chunk)
            size -= len(chunk)
        self.body.seek(0)

    def _answer(self) -> Answer:
        if "Authorization" in self.headers:
            self.user = self.hub.users.get(self.headers["Authorization"].removeprefix("Bearer "))
            if self.user is None:
                raise HubError(401, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, access, function in ROUTES:
            if route_method == method and (match := pattern.fullmatch(self.route_path)):
                arguments = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return self._call(function, access, arguments)
        raise HubError(404, "This Hub does not know the address")

    def _call(self, function: Callable, access: str, arguments: dict[str, str]) -> Answer:
        if access == "user" and self.user is None:
            raise HubError(401, "Invalid username or password.")
        if access in ("read", "write"):
            kind, repo_id = arguments.pop("kind", "models"), arguments.pop("id")
            arguments["repo"] = self._repository(kind, repo_id, write=access == "write")
        try:
            answer = function(self, **arguments)
        except (KeyError, TypeError, ValueError) as error:
            raise HubError(400, f"Malformed request: {error!r}") from error
        return answer if isinstance(answer, Answer) else _json(answer)

    def _repository(self, kind: str, repo_id: str, write: bool) -> Repository:
        repo = self.hub.repositories.get((kind, repo_id))
        if repo is None or (repo.private and self.user != repo.owner):
            # As on the real Hub, nobody learns whether a repository that he may not see exists.
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and self.user != repo.owner:
            raise HubError(403 if self.user else 401, "Only its owner may write to this repository")
        return repo

    def _send(self, answer: Answer, drop: bool) -> None:
        # Before the client can see the answer: a test may look at the log as soon as its call returns.
        self._log(None if drop else answer.status)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(answer.size)}.items():
            self.send_header(name, value)
        self.end_headers()
        remaining = answer.size // 2 if drop else answer.size
        while remaining > 0 and self.command != "HEAD":
            chunk = answer.content.read(min(remaining, 1024**2))
            if not chunk:  # a test has cut the file short
                return self._drop()
            self.wfile.write(chunk)
            remaining -= len(chunk)
        if drop:
            self._drop()

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _log(self, status: int | None) -> None:
        self.hub.requests.append(Request(self.command, self.route_path, self.user, status))

    def log_message(self, *args) -> None:
        """Nothing on stderr; see `LoopbackHub.requests`."""

    # Users and repositories.

    @_route("GET", "/api/whoami-v2", "user")
    def whoami(self):
        token = {"displayName": "loopback", "role": "write", "createdAt": "2026-01-01T00:00:00.000Z"}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "id": self.user, "name": self.user, "fullname": self.user, "orgs": [], "auth": auth}

    @_route("POST", "/api/repos/create", "user")
    def create_repository(self):
        request = json.load(self.body)
        kind = request.get("type", "model") + "s"
        repo_id = "{}/{}".format(request.get("organization") or self.user, request["name"])
        url = f"{self.hub.url}/{repo_id if kind == 'models' else f'{kind}/{repo_id}'}"
        if (kind, repo_id) in self.hub.repositories:
            raise HubError(409, "You already created this repository", url=url)
        self.hub.create(repo_id, kind, self.user, private=request.get("visibility") == "private")
        return {"url": url, "name": repo_id, "id": repo_id}

    @_route("DELETE", "/api/repos/delete", "user")
    def delete_repository(self):
        request = json.load(self.body)
        repo_id = "{}/{}".format(request.get("organization") or self.user, request["name"])
        repo = self._repository(request.get("type", "model") + "s", repo_id, write=True)
        self.hub.delete(repo)
        return {}

    @_route("POST", "/api/validate-yaml", "anybody")
    def validate_card(self):
        """Sees only whether there is metadata and where it ends: the standard library cannot read YAML."""
        content = json.load(self.body)["content"]
        if not content.startswith("---\n"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        if "\n---" not in content[3:]:
            message = "the metadata has no end"
            raise HubError(400, message, errors=[{"message": message}], warnings=[])
        return {"errors": [], "warnings": []}

    # Uploads: preupload says what is regular or LFS and what is there already, LFS objects come, a commit names them.

    @_route("POST", f"{_API}/preupload/{_REVISION}", "write")
    def preupload(self, repo: Repository, revision: str):
        if "create_pr" in self.query:
            raise HubError(501, "Pull requests are not modeled")
        tree = repo.at(revision).files
        answers = []
        for file in json.load(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if self.hub.is_lfs(tree, path, file["size"]) else "regular"
            oid = tree[path].etag if path in tree else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    @_route("POST", rf"{_WEB}\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self, repo: Repository):
        objects = json.load(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in repo.lfs_files:
                lfs_url = f"{self.hub.url}/{repo.web_path}.git/info/lfs"
                upload, verify = {"href": f"{lfs_url}/upload/{wanted['oid']}"}, {"href": f"{lfs_url}/verify"}
                wanted["actions"] = {"upload": upload, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    @_route("PUT", rf"{_WEB}\.git/info/lfs/upload/(?P<sha256>[0-9a-f]{{64}})", "anybody")
    def lfs_upload(self, id: str, sha256: str, kind: str = "models"):
        """The client sends no token here: on the real Hub this is an object store, and the address is secret."""
        file = self.hub.store(self.body, is_lfs=True)
        if file.sha256 != sha256:
            raise HubError(400, "The content does not have the announced sha256")
        self.hub.repository(id, kind).lfs_files[sha256] = file
        return {}

    @_route("POST", rf"{_WEB}\.git/info/lfs/verify", "write")
    def lfs_verify(self, repo: Repository):
        request = json.load(self.body)
        if request["oid"] not in repo.lfs_files or repo.lfs_files[request["oid"]].size != request["size"]:
            raise HubError(404, "There is no such LFS object")
        return {}

    @_route("POST", f"{_API}/commit/{_REVISION}", "write")
    def commit(self, repo: Repository, revision: str):
        header, *operations = (json.loads(line) for line in self.body.read().splitlines())
        header = header["value"]
        parent = repo.branch(revision)
        if not parent.oid.startswith(header.get("parentCommit", "")):
            raise HubError(412, "The branch has got another commit since")
        tree = dict(parent.files)
        for operation in operations:
            self._apply(operation["key"], operation["value"], tree, repo)
        commit = repo.commit(revision, tree, header["summary"], header.get("description", ""), self.user)
        return {"commitOid": commit.oid, "commitUrl": f"{self.hub.url}/{repo.web_path}/commit/{commit.oid}"}

    def _apply(self, key: str, value: dict, tree: dict[str, File], repo: Repository) -> None:
        path = value["path"]
        if key in ("file", "lfsFile") and any(part in ("", ".", "..", ".git") for part in path.split("/")):
            raise HubError(400, f"Not a valid path: {path}")
        if key == "file":
            tree[path] = self.hub.store(io.BytesIO(base64.b64decode(value["content"])), is_lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in repo.lfs_files:
                raise HubError(400, f"{path} refers to an LFS object that was not uploaded")
            tree[path] = repo.lfs_files[value["oid"]]
        elif key in ("deletedFile", "deletedFolder"):
            prefix = path.rstrip("/") + "/"
            gone = [name for name in tree if name == path or (key == "deletedFolder" and name.startswith(prefix))]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del tree[name]
        else:
            raise HubError(400, f"Unknown operation {key}")

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
        repo.branches[branch] = repo.at(json.load(self.body).get("startingPoint", "main"))
        return {}

    @_route("POST", f"{_API}/tag/{_REVISION}", "write")
    def create_tag(self, repo: Repository, revision: str):
        tag = json.load(self.body)["tag"]
        if tag in repo.tags:
            raise HubError(409, "The tag exists already")
        repo.tags[tag] = repo.at(revision)
        return {}

    # Lists and downloads.

    @_route("GET", f"{_API}/commits/{_REVISION}", "read")
    def commits(self, repo: Repository, revision: str):
        return [
            {"id": c.oid, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
            for c in repo.at(revision).history()
        ]

    @_route("GET", f"{_API}/tree/{_REVISION}(?:/(?P<folder>.+))?", "read")
    def tree(self, repo: Repository, revision: str, folder: str = ""):
        entries = _entries(repo.at(revision))
        prefix = f"{folder}/" if folder else ""
        if folder and not any(path.startswith(prefix) for path in entries):
            raise HubError(404, "The folder does not exist", "EntryNotFound")
        deep = self.query.get("recursive", "").lower() in ("1", "true")
        inside = (path for path in entries if path.startswith(prefix))
        return [entries[path] for path in inside if deep or "/" not in path.removeprefix(prefix)]

    @_route("POST", f"{_API}/paths-info/{_REVISION}", "read")
    def paths_info(self, repo: Repository, revision: str):
        paths = parse_qs(self.body.read().decode()).get("paths", [])
        entries = _entries(repo.at(revision))
        return [entries[path.rstrip("/")] for path in paths if path.rstrip("/") in entries]

    @_route("GET", f"{_WEB}/resolve/{_REVISION}/(?P<path>.+)", "read")
    def resolve(self, repo: Repository, revision: str, path: str):
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        file = commit.files[path]
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        start, stop, status = _byte_range(self.headers.get("Range"), file.size)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        content = self.hub.blob_path(file).open("rb")
        content.seek(start)
        return Answer(status, headers, content, stop - start)

    # Last, because a repository without namespace may be named like one of the words above.
    @_route("GET", f"{_API}(?:/revision/{_REVISION})?", "read")
    def info(self, repo: Repository, revision: str = "main"):
        commit = repo.at(revision)
        siblings = []
        for path, file in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if "blobs" in self.query:
                entry = file.tree_entry(path)
                siblings[-1] |= {"size": file.size, "blobId": entry["oid"], "lfs": entry.get("lfs")}
        *_, first = commit.history()
        card = self.hub.blob_path(commit.files["README.md"]).read_text() if "README.md" in commit.files else ""
        return {
            "id": repo.id,
            "author": repo.id.rpartition("/")[0],
            "sha": commit.oid,
            "private": repo.private,
            "createdAt": first.date,
            "lastModified": commit.date,
            "siblings": siblings,
            **_card_metadata(card),
        }


def _entries(commit: Commit) -> dict[str, dict]:
    """Files and the folders above them, by path."""
    entries = {}
    for path, file in sorted(commit.files.items()):
        for folder in [*PurePosixPath(path).parents][-2::-1]:
            oid = hashlib.sha1(f"{commit.oid} {folder}".encode()).hexdigest()
            entries[str(folder)] = {"type": "directory", "path": str(folder), "size": 0, "oid": oid}
        entries[path] = file.tree_entry(path)
    return entries


def _byte_range(header: str | None, size: int) -> tuple[int, int, int]:
    """First byte, the byte after the last one, and the status, for `Range: bytes=a-b`, `bytes=a-` and `bytes=-n`."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None:
        return 0, size, 200
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, stop, 206


def _card_metadata(card: str) -> dict[str, str]:
    """What `pipeline(model=...)` asks for, from the lines between the first two `---` of a model card."""
    block = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    return dict(re.findall(r"^(library_name|pipeline_tag): *(\S+)$", block[1], re.MULTILINE)) if block else {}
