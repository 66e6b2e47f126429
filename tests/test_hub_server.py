# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The loopback Hub, asked by the real client: what it stores, what it refuses, and how it fails when told to."""

import hashlib
import json
import os
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import save_file


try:
    import httpx2 as httpx  # of huggingface_hub 2
except ImportError:
    import httpx

api = HfApi()


@pytest.fixture
def repo(hub, repo_id):
    api.create_repo(repo_id)
    hub.requests.clear()
    return repo_id


@pytest.fixture
def model_folder(tmp_path):
    """A configuration, a card, and 11 MB of weights: more than the Hub takes as a regular file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "cait"}')
    (folder / "README.md").write_text("---\nlibrary_name: transformers\npipeline_tag: image-classification\n---\n")
    weights = np.random.default_rng(0).standard_normal((2750, 1000), dtype=np.float32)
    save_file({"weight": weights}, folder / "model.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != ".gitattributes"}


def head(repo_id: str) -> str:
    return api.model_info(repo_id).sha


def titles(repo_id: str, revision: str = "main") -> list[str]:
    return [commit.title for commit in api.list_repo_commits(repo_id, revision=revision)]


def ask(hub, method: str, path: str, body: bytes | None = None, **headers) -> tuple[int, bytes, dict]:
    """A request that the client would not make."""
    headers = {"Authorization": f"Bearer {hub.token}", **headers}
    request = urllib.request.Request(hub.url + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


# Users and repositories


def test_client_talks_to_the_loopback_hub_as_tester(hub):
    assert huggingface_hub.constants.ENDPOINT == hub.url
    assert hub.url.startswith("http://127.0.0.1:")
    assert api.whoami()["name"] == "tester"


def test_unknown_token_is_refused_even_for_what_is_public(hub, repo):
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_nobody")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info(repo, token="hf_nobody")


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_create_upload_list_download_and_delete(hub, repo_id, repo_type):
    url = api.create_repo(repo_id, repo_type=repo_type, space_sdk="static" if repo_type == "space" else None)
    assert (url.repo_id, url.repo_type, url.endpoint) == (repo_id, repo_type, hub.url)
    api.upload_file(path_or_fileobj=b"text", path_in_repo="a/b.txt", repo_id=repo_id, repo_type=repo_type)
    assert set(api.list_repo_files(repo_id, repo_type=repo_type)) == {".gitattributes", "a/b.txt"}
    assert Path(hf_hub_download(repo_id, "a/b.txt", repo_type=repo_type)).read_bytes() == b"text"
    api.delete_repo(repo_id, repo_type=repo_type)
    assert not api.repo_exists(repo_id, repo_type=repo_type)


def test_deleting_a_repository_frees_the_weights_that_only_it_had(hub, repo_id):
    for name in (repo_id, repo_id + "-copy"):
        api.create_repo(name)
        file = hub.write(name, {"model.safetensors": repo_id.encode()}).files["model.safetensors"]
    api.delete_repo(repo_id + "-copy")
    assert hub.blob_path(file).read_bytes() == repo_id.encode()
    api.delete_repo(repo_id)
    assert not hub.blob_path(file).exists()


def test_creating_twice_conflicts_unless_allowed(repo):
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo)
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_private_repository_is_hidden_without_its_owners_token(hub, repo_id, monkeypatch):
    monkeypatch.setitem(hub.users, "hf_of_another", "another")
    api.create_repo(repo_id, private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo_id)
    for token in (False, "hf_of_another"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(repo_id, token=token)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(repo_id, "config.json", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id=repo_id, token=token)
    assert api.model_info(repo_id).private
    assert Path(hf_hub_download(repo_id, "config.json")).read_bytes() == b"{}"


def test_public_repository_is_read_by_all_and_written_by_its_owner(hub, repo, monkeypatch):
    monkeypatch.setitem(hub.users, "hf_of_another", "another")
    assert not api.model_info(repo, token=False).private
    with pytest.raises(HfHubHTTPError, match="403"):
        api.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id=repo, token="hf_of_another")
    with pytest.raises(HfHubHTTPError, match="401"):
        api.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id=repo, token=False)
    assert api.list_repo_files(repo) == [".gitattributes"]


# Uploads and downloads


def test_folder_goes_up_through_lfs_and_comes_down_equal(hub, repo, model_folder):
    assert (model_folder / "model.safetensors").stat().st_size > 10 * 1024**2
    api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert hub.count("^PUT .*/lfs/upload/") == hub.count("^POST .*/lfs/verify") == 1
    files = hub.repository(repo).branches["main"].files
    assert {path for path, file in files.items() if file.is_lfs} == {"model.safetensors"}
    assert contents(snapshot_download(repo)) == contents(model_folder)
    copy = snapshot_download(repo, local_dir=model_folder.parent / "copy", allow_patterns="*.json")
    assert set(os.listdir(copy)) == {".cache", "config.json"}


def test_uploading_the_same_folder_again_makes_no_commit(hub, repo, model_folder):
    first = api.upload_folder(repo_id=repo, folder_path=model_folder)
    hub.requests.clear()
    second = api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert first.oid == second.oid == head(repo)
    assert hub.count("/preupload/") == 1
    assert hub.count("/commit/") == 0
    # The client asks before it compares, so the batch is requested; the server knows the content and wants none.
    assert hub.count("^PUT ") == 0


def test_only_what_changed_is_committed(hub, repo, model_folder):
    before = api.upload_folder(repo_id=repo, folder_path=model_folder).oid
    (model_folder / "config.json").write_text("{}")
    hub.requests.clear()
    api.upload_folder(repo_id=repo, folder_path=model_folder, commit_message="Another configuration")
    assert hub.count("^PUT ") == 0
    old, new = (hub.repository(repo).at(revision).files for revision in (before, "main"))
    assert {path for path in new if new[path] != old[path]} == {"config.json"}
    assert titles(repo)[0] == "Another configuration"


def test_small_weights_go_through_lfs_by_gitattributes_and_large_text_by_size(hub, repo):
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="sub/small.safetensors", repo_id=repo)
    api.upload_file(path_or_fileobj=b"x" * (10 * 1024**2 + 1), path_in_repo="large.txt", repo_id=repo)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="small.txt", repo_id=repo)
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}
    assert (entries["small.txt"].lfs, entries["large.txt"].lfs.size) == (None, 10 * 1024**2 + 1)
    assert entries["sub/small.safetensors"].lfs.sha256 == hashlib.sha256(b"weights").hexdigest()


def test_files_and_folders_are_deleted(repo):
    operations = [CommitOperationAdd(path, b"text") for path in ("a.txt", "d/b.txt", "d/e/c.txt", "dd.txt")]
    api.create_commit(repo, operations, commit_message="Files")
    api.delete_file("a.txt", repo)
    api.delete_folder("d", repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "dd.txt"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("a.txt", repo)


def test_tree_and_paths_info(repo):
    operations = [CommitOperationAdd(path, b"text") for path in ("a.txt", "d/b.txt", "d/e/c.txt")]
    api.create_commit(repo, operations, commit_message="Files")

    def listed(*arguments, **options):
        return {entry.path: hasattr(entry, "size") for entry in api.list_repo_tree(repo, *arguments, **options)}

    assert listed() == {".gitattributes": True, "a.txt": True, "d": False}
    assert listed("d") == {"d/b.txt": True, "d/e": False}
    assert listed("d", recursive=True) == {"d/b.txt": True, "d/e": False, "d/e/c.txt": True}
    with pytest.raises(EntryNotFoundError):
        listed("nothing")
    file, folder = api.get_paths_info(repo, ["a.txt", "d", "nothing"])
    git_blob = hashlib.sha1(b"blob 4\0text").hexdigest()
    assert (file.path, file.size, file.blob_id, folder.path) == ("a.txt", 4, git_blob, "d")
    siblings = api.model_info(repo, files_metadata=True).siblings
    assert {sibling.rfilename: sibling.blob_id for sibling in siblings}["d/e/c.txt"] == git_blob


def test_ranges(hub, repo):
    hub.write(repo, {"digits.txt": b"0123456789"})
    path = f"/{repo}/resolve/main/digits.txt"
    for wanted, content, told in (("2-4", b"234", "2-4"), ("7-", b"789", "7-9"), ("-3", b"789", "7-9")):
        status, body, headers = ask(hub, "GET", path, Range=f"bytes={wanted}")
        assert (status, body, headers["Content-Range"]) == (206, content, f"bytes {told}/10")
    status, _, headers = ask(hub, "GET", path, Range="bytes=10-")
    assert (status, headers["Content-Range"]) == (416, "bytes */10")
    assert ask(hub, "GET", path, Range="bytes=0-1,4-5")[:2] == (200, b"0123456789")


def test_card_tells_pipeline_and_library(hub, repo, model_folder):
    api.upload_file(path_or_fileobj=model_folder / "README.md", path_in_repo="README.md", repo_id=repo)
    info = api.model_info(repo)
    assert (info.pipeline_tag, info.library_name) == ("image-classification", "transformers")
    with pytest.warns(UserWarning, match="metadata"):
        api.upload_file(path_or_fileobj=b"# A model\n", path_in_repo="README.md", repo_id=repo)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\nlicense: mit\n", path_in_repo="README.md", repo_id=repo)


def test_simultaneous_uploads_all_arrive(repo):
    def upload(number: int) -> str:
        content = os.urandom(500_000)  # a regular file is stored while its commit is made
        return api.upload_file(path_or_fileobj=content, path_in_repo=f"{number}.txt", repo_id=repo).oid

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, range(8)))
    assert len(api.list_repo_files(repo)) == len(titles(repo)) == 9


# Branches, tags, revisions


@pytest.mark.parametrize("branch", ["dev", "feature/x"])
def test_branches(hub, repo, branch):
    api.upload_file(path_or_fileobj=b"main", path_in_repo="a.txt", repo_id=repo)
    api.create_branch(repo, branch=branch)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(repo, branch=branch)
    api.create_branch(repo, branch=branch, exist_ok=True)
    commit = api.upload_file(path_or_fileobj=b"branch", path_in_repo="a.txt", repo_id=repo, revision=branch)
    for revision in (branch, commit.oid, commit.oid[:7]):
        assert Path(hf_hub_download(repo, "a.txt", revision=revision)).read_bytes() == b"branch"
    assert Path(hf_hub_download(repo, "a.txt")).read_bytes() == b"main"
    refs = {ref.name: (ref.ref, ref.target_commit) for ref in api.list_repo_refs(repo).branches}
    assert refs == {"main": ("refs/heads/main", head(repo)), branch: (f"refs/heads/{branch}", commit.oid)}
    assert len(titles(repo)) == 2
    assert len(titles(repo, branch)) == 3


def test_tags_stay_where_they_were_set(repo):
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo).oid
    api.create_tag(repo, tag="v1.0")
    second = api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo).oid
    api.create_tag(repo, tag="initial", revision=first[:8])
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(repo, tag="v1.0")
    assert Path(hf_hub_download(repo, "a.txt", revision="v1.0")).read_bytes() == b"1"
    assert {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags} == {"v1.0": first, "initial": first}
    assert [commit.commit_id for commit in api.list_repo_commits(repo)][:2] == [second, first]
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id=repo, revision="v1.0")


def test_commit_on_a_parent_that_is_no_longer_the_head_conflicts(repo):
    old = head(repo)
    new = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo).oid
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo, parent_commit=old)
    assert head(repo) == new
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo, parent_commit=new)


# Errors and faults


def test_each_missing_thing_has_its_error(hub, repo):
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("tester/nothing", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("nothing", "config.json", token=False)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo, "config.json", revision="nothing")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo, "config.json")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("tester/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(repo, branch="b", revision="nothing")
    assert ask(hub, "GET", "/api/no-such-address")[0] == 404


def test_commits_that_refer_to_nothing_or_leave_the_repository_are_refused(hub, repo):
    sha256 = hashlib.sha256(b"promised").hexdigest()
    add = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": sha256, "size": 8}}
    leave = {"key": "file", "value": {"path": "../a.txt", "content": "", "encoding": "base64"}}
    unknown = {"key": "unknown", "value": {"path": "a"}}
    for operation, reason in ((add, b"not uploaded"), (leave, b"Not a valid path"), (unknown, b"Unknown operation")):
        lines = [{"key": "header", "value": {"summary": "Wrong"}}, operation]
        body = "\n".join(json.dumps(line) for line in lines).encode()
        status, answer, _ = ask(hub, "POST", f"/api/models/{repo}/commit/main", body)
        assert status == 400
        assert reason in answer
    assert ask(hub, "PUT", f"/{repo}.git/info/lfs/upload/{sha256}", b"something else")[0] == 400
    assert titles(repo) == ["initial commit"]


def test_tests_can_serve_what_no_client_would_send(hub, repo):
    commit = hub.write(repo, {"../outside.txt": b"outside", "model.safetensors": b"right"})
    assert hub.read(repo, "../outside.txt") == b"outside"
    assert "../outside.txt" in api.list_repo_files(repo)
    hub.blob_path(commit.files["model.safetensors"]).write_bytes(b"wrong")
    assert ask(hub, "GET", f"/{repo}/resolve/main/model.safetensors")[1] == b"wrong"


def test_connection_dropped_in_the_commit_leaves_the_old_revision_and_can_be_repeated(hub, repo, model_folder):
    old = head(repo)
    hub.fail_next(f"^POST /api/models/{repo}/commit/main")
    with pytest.raises(httpx.TransportError):
        api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert (head(repo), api.list_repo_files(repo)) == (old, [".gitattributes"])
    api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert hub.count("^PUT ") == 1  # what had arrived is not sent again
    assert contents(snapshot_download(repo)) == contents(model_folder)
    assert [request.status for request in hub.requests if "/commit/" in request.path] == [None, 200]


def test_client_that_dies_in_the_middle_of_a_commit_leaves_the_old_revision(hub, repo):
    value = {"path": "a.txt", "content": "", "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "Half"}}, {"key": "file", "value": value}]
    sent = "".join(json.dumps(line) + "\n" for line in lines).encode()
    head_lines = (
        f"POST /api/models/{repo}/commit/main HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {hub.token}",
        f"Content-Length: {len(sent) + 100}",
    )
    with socket.create_connection(hub.server.server_address) as connection:
        connection.sendall("\r\n".join((*head_lines, "", "")).encode() + sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert titles(repo) == ["initial commit"]


def test_connection_dropped_in_every_upload_leaves_the_old_revision(hub, repo, model_folder, no_waiting):
    old = head(repo)
    hub.fail_next("^PUT .*/lfs/upload/", times=6)
    with pytest.raises(RuntimeError, match=r"uploading 'model\.safetensors'"):
        api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert (head(repo), hub.count("/commit/")) == (old, 0)
    assert not hub.repository(repo).lfs_files
    api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert hub.read(repo, "model.safetensors") == (model_folder / "model.safetensors").read_bytes()


def test_client_resumes_a_download_that_was_dropped_half_way(hub, repo, no_waiting):
    weights = os.urandom(21 * 1024**2)  # the client writes, and therefore resumes, in steps of 10 MiB
    hub.write(repo, {"model.safetensors": weights})
    hub.fail_next("^GET .*/model.safetensors")
    assert Path(hf_hub_download(repo, "model.safetensors")).read_bytes() == weights
    assert [request.status for request in hub.requests if request.method == "GET"] == [None, 206]


def test_dropped_download_that_cannot_be_resumed_leaves_no_file(hub, repo, no_waiting):
    hub.write(repo, {"model.safetensors": b"weights"})
    hub.fail_next("^GET .*/model.safetensors", times=6)
    with pytest.raises(httpx.RemoteProtocolError):
        hf_hub_download(repo, "model.safetensors")
    assert not isinstance(huggingface_hub.try_to_load_from_cache(repo, "model.safetensors"), str)


def test_fault_answers_with_a_status_so_many_times(hub, repo, no_waiting):
    hub.fail_next(f"^GET /api/models/{repo}$", 403)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.model_info(repo)
    hub.fail_next("^POST .*/preupload/", 503, times=2)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="b.txt", repo_id=repo)
    assert [request.status for request in hub.requests if "/preupload/" in request.path] == [503, 503, 200]
    with pytest.raises(ValueError, match="how='slow'"):
        hub.fail_next("x", "slow")


def test_dropped_head_request_is_an_error_of_the_connection(hub, repo):
    hub.fail_next("^HEAD ")
    with pytest.raises(httpx.TransportError):
        huggingface_hub.get_hf_file_metadata(f"{hub.url}/{repo}/resolve/main/.gitattributes")


# What tests look at


def test_log_names_users_and_never_holds_the_token(hub, repo, model_folder):
    api.upload_folder(repo_id=repo, folder_path=model_folder)
    snapshot_download(repo, token=False)
    ask(hub, "GET", f"/api/models/{repo}?token={hub.token}")
    assert {request.user for request in hub.requests} == {"tester", None}
    assert hub.token not in repr(hub.requests)


def test_nothing_leaves_the_machine(refused_hosts):
    for reach in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.getaddrinfo("host.invalid", 80),
        lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
    ):
        with pytest.raises(OSError, match="loopback"):
            reach()
    assert refused_hosts == ["192.0.2.1", "host.invalid", "192.0.2.1"]
    refused_hosts.clear()
