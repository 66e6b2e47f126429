# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Add the remote code to a converted folder and push it to the Hub.

How Transformers finds the code of a repository: `auto_map` in config.json and preprocessor_config.json names the
classes, and the files that those import relatively have to lie beside them (`transformers.dynamic_module_utils`).
"""

import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import filter_repo_objects
from transformers.dynamic_module_utils import get_relative_import_files

from .files import foreign_files, read_json, read_manifest, write_json, write_manifest
from .loading import HUB_ERRORS, MODEL_FILES, check_folder


PACKAGE = Path(__file__).parent
AUTO_MAP = {
    "AutoConfig": "configuration_cait.CaitConfig",
    "AutoModel": "modeling_cait.CaitModel",
    "AutoModelForImageClassification": "modeling_cait.CaitForImageClassification",
    "AutoModelForMaskedImageModeling": "modeling_cait.CaitForMaskedImageModeling",
    "AutoBackbone": "modeling_cait.CaitBackbone",
}
# By the backend that the image processors of Transformers choose: torchvision where it is installed.
IMAGE_PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_cait.CaitImageProcessor",
        "pil": "image_processing_pil_cait.CaitImageProcessorPil",
    }
}


def remote_code_files() -> list[Path]:
    """The files of this package that a repository needs for `trust_remote_code=True`."""
    entries = [PACKAGE / f"{name}.py" for name in ("modeling_cait", "image_processing_cait")]
    imported = {Path(file) for entry in entries for file in get_relative_import_files(entry)}
    return sorted({*entries, *imported})


def add_remote_code(folder: Path) -> None:
    """Put the modeling files into a folder with a saved model, and their names into its configurations."""
    manifest = read_manifest(folder)
    is_ours = bool(manifest["files"]) and not foreign_files(folder)
    for file in remote_code_files():
        shutil.copyfile(file, folder / file.name)
    for filename, auto_map in (("config.json", AUTO_MAP), ("preprocessor_config.json", IMAGE_PROCESSOR_AUTO_MAP)):
        file = folder / filename
        if file.is_file():
            write_json(file, {**read_json(file), "auto_map": auto_map}, indent=2, sort_keys=True)
    if is_ours:  # so that --overwrite still may replace it
        write_manifest(folder, manifest["source"])


def published_patterns() -> list[str]:
    """Names of the files that are pushed: not the checkpoints and logs that training leaves in the same folder."""
    return ["README.md", *MODEL_FILES, *(file.name for file in remote_code_files())]


def push_folder(
    folder: Path, repo_id: str, private: bool = False, revision: str | None = None, tag: str | None = None
) -> str:
    """Make a branch of a repository on the Hub hold the model in `folder`, in a single commit or none.

    Files of a model that was there before (shards, modeling files) go; any other file stays. Where nothing differs
    there is no commit. The token is the one that `hf auth login` or HF_TOKEN provides.

    Args:
        private: whether the repository is a private one; a public one that exists is refused.
        revision: the branch, made where it does not exist. `None` is the main branch.
        tag: name for the commit.

    Returns:
        Address of the commit.

    Raises:
        ValueError: if `folder` does not hold a model of this package that loads, the repository is public though
            `private` is asked for, or the tag exists and names another commit.
        OSError: if the Hub cannot be reached or refuses.
    """
    check_folder(folder)
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"--private is given, but {repo_id} exists and is public.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id, operations(api, folder, repo_id, revision), commit_message="Upload CaiT", revision=revision
        )
        if tag is not None:
            create_tag(api, repo_id, tag, commit.oid)
    except (*HUB_ERRORS, RuntimeError) as error:  # RuntimeError: of an upload that broke off
        raise OSError(f"{folder} was written, but it could not be pushed to {repo_id}: {error}") from error
    return commit.commit_url


def operations(api: HfApi, folder: Path, repo_id: str, revision: str | None) -> list:
    """Operations that turn the branch's model files into those of `folder`. The client itself leaves out equal files.

    Not `HfApi.upload_folder`, which may cut an upload into several commits.
    """
    patterns = published_patterns()
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    added = list(filter_repo_objects(names, allow_patterns=patterns))
    present = filter_repo_objects(api.list_repo_files(repo_id, revision=revision), allow_patterns=patterns)
    return [CommitOperationAdd(name, folder / name) for name in added] + [
        CommitOperationDelete(name) for name in sorted(set(present) - set(added))
    ]


def create_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Name `commit`; a tag that exists is never moved."""
    tags = {known.name: known.target_commit for known in api.list_repo_refs(repo_id).tags}
    if tag not in tags:
        api.create_tag(repo_id, tag=tag, revision=commit)
    elif tags[tag] != commit:
        raise ValueError(f"--tag is {tag}, but {repo_id} has a tag of this name at another commit, {tags[tag]}.")
