# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The loopback Hub, asked by the real client: what it stores, what it refuses, and how it fails when told to."""

import hashlib
import os
import socket
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
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
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


# Repositories and who may see them


def test_client_talks_to_the_loopback_hub_with_its_token(hub, repo):
    assert huggingface_hub.constants.ENDPOINT == hub.url and hub.url.startswith("http://127.0.0.1:")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info(repo, token="hf_nobody")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo)
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_deleting_a_repository_frees_the_weights_that_only_it_had(hub, repo_id):
    for name in (repo_id, repo_id + "-copy"):
        api.create_repo(name)
        file = hub.write(name, {"model.safetensors": repo_id.encode()}).files["model.safetensors"]
    hub.delete(repo_id + "-copy")
    assert hub.blob_path(file).read_bytes() == repo_id.encode()
    hub.delete(repo_id)
    assert not hub.blob_path(file).exists()


@pytest.mark.parametrize("private", [True, False])
def test_only_the_owner_writes_and_a_private_repository_is_hidden(private, hub, repo_id):
    api.create_repo(repo_id, private=private)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo_id)
    assert api.model_info(repo_id).private == private
    with pytest.raises(RepositoryNotFoundError if private else HfHubHTTPError, match="401"):
        api.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id=repo_id, token=False)
    if private:
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(repo_id, "config.json", token=False)
    assert Path(hf_hub_download(repo_id, "config.json", token=None if private else False)).read_bytes() == b"{}"
    assert set(api.list_repo_files(repo_id)) == {".gitattributes", "config.json"}


# Uploads and downloads


def test_folder_goes_up_through_lfs_and_comes_down_equal(hub, repo, model_folder):
    first = api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert hub.count("^PUT .*/lfs/upload/") == hub.count("^POST .*/lfs/verify") == 1
    files = hub.repositories[repo].branches["main"].files
    assert {path for path, file in files.items() if file.is_lfs} == {"model.safetensors"}
    assert contents(snapshot_download(repo)) == contents(model_folder)
    copy = snapshot_download(repo, local_dir=model_folder.parent / "copy", allow_patterns="*.json")
    assert set(os.listdir(copy)) == {".cache", "config.json"}

    hub.requests.clear()
    assert api.upload_folder(repo_id=repo, folder_path=model_folder).oid == first.oid == head(repo)
    assert (hub.count("/preupload/"), hub.count("/commit/"), hub.count("^PUT ")) == (1, 0, 0)
    (model_folder / "config.json").write_text("{}")
    api.upload_folder(repo_id=repo, folder_path=model_folder, commit_message="Another configuration")
    new = hub.repositories[repo].branches["main"].files
    assert {path for path in new if new[path] != files[path]} == {"config.json"} and hub.count("^PUT ") == 0
    assert titles(repo)[0] == "Another configuration"


def test_small_weights_go_through_lfs_by_gitattributes_and_large_text_by_size(hub, repo):
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="sub/small.safetensors", repo_id=repo)
    api.upload_file(path_or_fileobj=b"x" * (10 * 1024**2 + 1), path_in_repo="large.txt", repo_id=repo)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="small.txt", repo_id=repo)
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}
    assert (entries["small.txt"].lfs, entries["large.txt"].lfs.size) == (None, 10 * 1024**2 + 1)
    assert entries["small.txt"].blob_id == hashlib.sha1(b"blob 1\0x").hexdigest()
    assert entries["sub/small.safetensors"].lfs.sha256 == hashlib.sha256(b"weights").hexdigest()


def test_files_are_deleted(repo):
    operations = [CommitOperationAdd(path, b"text") for path in ("a.txt", "d/b.txt")]
    api.create_commit(repo, operations, commit_message="Files")
    api.delete_file("a.txt", repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "d/b.txt"}


def test_simultaneous_uploads_all_arrive(repo):
    def upload(number: int) -> str:
        content = os.urandom(500_000)  # a regular file is stored while its commit is made
        return api.upload_file(path_or_fileobj=content, path_in_repo=f"{number}.txt", repo_id=repo).oid

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, range(8)))
    assert len(api.list_repo_files(repo)) == len(titles(repo)) == 9


# Branches, tags, revisions


@pytest.mark.parametrize("branch", ["dev", "feature/x"])
def test_branches_and_tags(hub, repo, branch):
    first = api.upload_file(path_or_fileobj=b"main", path_in_repo="a.txt", repo_id=repo).oid
    for _ in range(2):
        api.create_branch(repo, branch=branch, exist_ok=True)
    commit = api.upload_file(path_or_fileobj=b"branch", path_in_repo="a.txt", repo_id=repo, revision=branch)
    api.create_tag(repo, tag="v1", revision=commit.oid)
    for revision in (branch, "v1", commit.oid, commit.oid[:7]):
        assert Path(hf_hub_download(repo, "a.txt", revision=revision)).read_bytes() == b"branch"
    assert Path(hf_hub_download(repo, "a.txt")).read_bytes() == b"main"
    refs = api.list_repo_refs(repo)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, branch: commit.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": commit.oid}
    assert (len(titles(repo)), len(titles(repo, branch))) == (2, 3)
    with pytest.raises(RevisionNotFoundError):  # a tag stays where it was set
        api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id=repo, revision="v1")


# Errors and faults


@pytest.mark.parametrize(
    "error, name, file, revision, token",
    [
        (RepositoryNotFoundError, "tester/nothing", "config.json", None, None),
        (RepositoryNotFoundError, "tester/nothing", "config.json", None, False),
        (RevisionNotFoundError, None, ".gitattributes", "nothing", None),
        (EntryNotFoundError, None, "config.json", None, None),
    ],
)
def test_each_missing_thing_has_its_error(error, name, file, revision, token, repo):
    with pytest.raises(error):
        hf_hub_download(name or repo, file, revision=revision, token=token)


def test_commits_that_refer_to_nothing_or_do_what_is_not_modeled_are_refused(hub, repo, monkeypatch):
    monkeypatch.setattr(HfApi, "preupload_lfs_files", lambda *args, **kwargs: None)
    add = CommitOperationAdd("a.bin", b"promised")
    add._upload_mode, add._is_uploaded = "lfs", True
    for operation in (add, huggingface_hub.CommitOperationDelete("d/", is_folder=True)):
        with pytest.raises(HfHubHTTPError, match="Malformed request"):
            api.create_commit(repo, [operation], commit_message="Wrong")
    assert titles(repo) == ["initial commit"]


def test_tests_can_serve_what_no_client_would_send(hub, repo):
    commit = hub.write(repo, {"../outside.txt": b"outside", "model.safetensors": b"right"})
    assert hub.read(repo, "../outside.txt") == b"outside" and "../outside.txt" in api.list_repo_files(repo)
    hub.blob_path(commit.files["model.safetensors"]).write_bytes(b"wrong")
    assert Path(hf_hub_download(repo, "model.safetensors")).read_bytes() == b"wrong"


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


def test_connection_dropped_in_every_upload_leaves_the_old_revision(hub, repo, model_folder, no_waiting):
    old = head(repo)
    hub.fail_next("^PUT .*/lfs/upload/", times=6)
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        api.upload_folder(repo_id=repo, folder_path=model_folder)
    assert (head(repo), hub.count("/commit/")) == (old, 0) and not hub.repositories[repo].lfs_files
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


def test_dropped_head_request_is_an_error_of_the_connection(hub, repo):
    hub.fail_next("^HEAD ")
    with pytest.raises(httpx.TransportError):
        huggingface_hub.get_hf_file_metadata(f"{hub.url}/{repo}/resolve/main/.gitattributes")


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
